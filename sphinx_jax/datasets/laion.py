"""LAION-400M and LAION-COCO, as img2dataset downloads them: webdataset tars, or parquet files.

https://laion.ai/blog/laion-400-open-dataset, https://laion.ai/blog/laion-coco; the metadata is CC BY 4.0, pictures and texts
are their owners'. `Laion` reads output_format=webdataset:

    root/00000.tar          members 000000000.jpg, 000000000.txt (the caption), 000000000.json (all that is known), ...
    root/00000.parquet      and 00000_stats.json are not read

`LaionParquet` reads output_format=parquet:

    root/00000.parquet      columns key, caption, jpg (bytes), status, width, height, ...; also png or webp for jpg

LAION-COCO has captions written by BLIP: the setting caption='top_caption' (or 'TEXT' for the page's own text) takes them
where img2dataset saved them as additional columns; with `--caption_col top_caption` they are the caption itself.
For more than some thousand files build the set first (prepare.py), a file at a time, in any number of processes.
"""

import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import parts
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.fields import unique
from sphinx_jax.datasets.parquet import Parquet

_KINDS = {'jpg': 0, 'jpeg': 0, 'png': 0, 'webp': 0, 'txt': 1, 'json': 2}
_BLOCK = 512  # bytes, to which a tar is filled up


class Laion:
  """Samples of webdataset tars, those without a picture or a caption included, which are bad examples.

  Where each sample begins is found at the first opening (seconds for 10,000 of them) and kept in 00000.tar.index.npz
  beside the tar, as long as that has the same size and date; where the folder cannot be written, in memory alone.
  A tar that is cut short or damaged gives the samples before the damage and is named in the log.

  Args:
    files: pattern or list of the tars under root; '': all.
    caption: 'caption' is the .txt, or the field of the .json where there is none; another name is a field of the .json.

  Attributes:
    broken: {path: reason} of damaged tars.
  """

  TASKS, SPLITS = ('caption',), ('train',)
  PATTERN = '*.tar'

  def __init__(
    self,
    root: Path,
    split: str,
    task: str,
    max_turns: int,
    files: str | Sequence[str] = '',
    caption: str = 'caption',
  ):
    del split, task, max_turns
    self._caption = caption
    self._paths = parts.listed('laion', root, files, self.PATTERN)
    self.broken: dict[str, str] = {}
    self._keys, self._places = [], []
    for path in Progress(self._paths, what='laion: tars'):
      keys, places, damage = _index(path)
      self._keys.append(keys)
      self._places.append(places)
      if damage:
        self.broken[str(path)] = damage
    self._ends = np.cumsum([len(keys) for keys in self._keys])
    if self.broken:
      log.warning(
        "source 'laion': %d of %d tars are damaged: %s",
        len(self.broken),
        len(self._paths),
        '; '.join(f'{path}: {why}' for path, why in list(self.broken.items())[:3]),
      )
    if not len(self):
      raise errors.make(
        "source 'laion'",
        f'{len(self._paths)} tars without a sample ({self._paths[0]}, ...)',
        'tars as img2dataset writes them',
        'download them again',
      )

  def __len__(self) -> int:
    return int(self._ends[-1])

  def item(self, index: int) -> Item:
    """Raises BadExample ('missing image', 'no caption', 'cut short', 'malformed record')."""
    tar = int(np.searchsorted(self._ends, index, side='right'))
    row = index - int(self._ends[tar]) + len(self._keys[tar])
    path, name = self._paths[tar], self._keys[tar][row].decode('utf-8', 'backslashreplace')
    image, *texts = self._places[tar][row]
    where = f'{path.stem}/{name}'
    if image[1] < 0:
      raise BadExample('missing image', f'{where}: the tar has no picture of it')
    try:
      with open(path, 'rb') as file:
        return Item(where, _read(file, where, image), {'caption': self._text(file, where, *texts)})
    except OSError as error:
      raise BadExample('missing image', f'{where}: {error}') from error

  def _text(self, file: Any, where: str, text: np.ndarray, told: np.ndarray) -> str:
    try:
      if self._caption == 'caption' and text[1] >= 0:
        return _read(file, where, text).decode()
      caption = json.loads(_read(file, where, told))[self._caption] if told[1] >= 0 else None
    except (KeyError, TypeError, ValueError, RecursionError) as error:
      raise BadExample('malformed record', f'{where}: {type(error).__name__} {error}') from error
    if not isinstance(caption, str):
      raise BadExample('no caption', f'{where}: {self._caption!r} is {caption!r:.80}')
    return caption


def _read(file: Any, where: str, place: np.ndarray) -> bytes:
  begin, size = (int(number) for number in place)
  file.seek(0, 2)
  if begin + size > file.tell():
    raise BadExample(
      'cut short', f'{where}: {begin + size - file.tell()} bytes are missing at the end of the tar'
    )
  file.seek(begin)
  return file.read(size)


def _index(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
  """(keys bytes[n], (begin, bytes) of picture, text and JSON int64[n, 3, 2] with -1 for what is not there, damage or '')."""
  cache, stat = path.with_name(f'{path.name}.index.npz'), path.stat()
  try:
    with np.load(cache) as kept:
      if kept['stat'].tolist() == [stat.st_size, stat.st_mtime_ns]:
        return kept['keys'], kept['places'], str(kept['damage'])
  except (
    Exception
  ):  # Not there or damaged, for which np.load raises errors of no common type: it is made again.
    pass
  keys, places, damage = _scan(path)
  try:
    partial = cache.with_name(f'.{cache.name}')
    with open(partial, 'wb') as file:
      np.savez(file, keys=keys, places=places, damage=damage, stat=[stat.st_size, stat.st_mtime_ns])
    partial.replace(cache)
  except OSError as error:
    log.debug('laion: no index is kept beside %s: %s', path, error)
  return keys, places, damage


def _scan(path: Path) -> tuple[np.ndarray, np.ndarray, str]:
  names, places, damage = [], [], ''
  try:
    with tarfile.open(path, 'r:') as tar:
      end = 0
      for member in tar:
        end = member.offset_data + -(-member.size // _BLOCK) * _BLOCK
        key, dot, suffix = member.name.rpartition('/')[2].partition('.')
        kind = _KINDS.get(suffix.lower())
        if not member.isfile() or kind is None:
          continue
        # As in webdataset, a sample's members follow each other.
        if not names or names[-1] != key or places[-1][kind][1] >= 0:
          names.append(key)
          places.append([[-1, -1] for _ in range(3)])
        places[-1][kind] = [member.offset_data, member.size]
    damage = _ending(path, end)
  except (tarfile.TarError, OSError, ValueError, EOFError) as error:
    damage = str(error) or type(error).__name__
  keys = np.array(
    [name.encode('utf-8', 'surrogateescape') for name in unique(names)] or [b''][:0], 'S'
  )
  return keys, np.array(places, np.int64).reshape(-1, 3, 2), damage


def _ending(path: Path, end: int) -> str:
  """What is wrong after the last member: tarfile ends without a word at a header that is cut off or damaged."""
  with open(path, 'rb') as file:
    file.seek(end)
    block = file.read(_BLOCK)
  return (
    ''
    if block == bytes(_BLOCK)
    else 'cut short'
    if len(block) < _BLOCK
    else f'no header at byte {end}'
  )


class LaionParquet:
  """Rows of parquet files whose download succeeded. Opening reads footers and the columns status and key.

  A row is read with its row group (100 rows as img2dataset writes them).

  Args:
    files: pattern or list of the parquet files under root; '': all.
    caption: the column.
  """

  TASKS, SPLITS = ('caption',), ('train',)
  PATTERN = '*.parquet'

  def __init__(
    self,
    root: Path,
    split: str,
    task: str,
    max_turns: int,
    files: str | Sequence[str] = '',
    caption: str = 'caption',
  ):
    del split, task, max_turns
    self._caption = caption
    paths = parts.listed('laion_parquet', root, files, self.PATTERN)
    self._file = Parquet('laion_parquet', paths, [('jpg', 'png', 'webp'), (caption,), ('key',)])
    self.broken = self._file.broken
    self._again: dict[
      tuple[int, int, int], str
    ] = {}  # Names of rows whose key another row of the file has, too.
    rows = list(self._rows())
    self._rows_of = np.array(rows, np.int64).reshape(-1, 3)
    if not rows:
      raise errors.make(
        "source 'laion_parquet'",
        f'no row whose status is success in {len(paths)} files',
        'downloaded pictures',
        'see the stats that img2dataset wrote',
      )

  def __len__(self) -> int:
    return len(self._rows_of)

  def item(self, index: int) -> Item:
    """Raises BadExample ('missing image', 'no caption', 'damaged file')."""
    file, group, row = (int(number) for number in self._rows_of[index])
    image, caption, key = self._file.row(file, group, row)
    where = f'{self._file.where(file).stem}/{self._again.get((file, group, row), key)}'
    if not isinstance(image, bytes):
      raise BadExample('missing image', f'{where}: the row has no picture')
    if not isinstance(caption, str):
      raise BadExample('no caption', f'{where}: {self._caption!r} is {caption!r:.80}')
    return Item(where, image, {'caption': caption})

  def _rows(self) -> Iterator[tuple[int, int, int]]:
    for file, groups in itertools.groupby(
      Progress(self._file.groups, what='laion_parquet: rows'), lambda group: group[0]
    ):
      status, keys = self._file.whole(file, 'status'), self._file.whole(file, 'key')
      names = unique(map(str, keys or ()))
      places = [(file, group, row) for _, group, rows, _ in groups for row in range(rows)]
      for number, place in enumerate(places):
        if status is None or status[number] == 'success':
          if keys and names[number] != str(keys[number]):
            self._again[place] = names[number]
          yield place
