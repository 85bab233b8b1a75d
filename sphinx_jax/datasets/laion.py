"""LAION-400M and LAION-COCO, as img2dataset downloads them: webdataset tars, or parquet files.

`Laion` reads output_format=webdataset:

    root/00000.tar          members 000000000.jpg, 000000000.txt (the caption), 000000000.json (all
                            metadata), ...
    root/00000.parquet      and 00000_stats.json are not read

`LaionParquet` reads output_format=parquet:

    root/00000.parquet      columns key, caption, jpg (bytes), status, width, height, ...; also png
                            or webp instead of jpg

The captions of LAION-COCO were written by BLIP. If img2dataset saved them as additional columns,
the setting caption='top_caption' reads them ('TEXT' reads the text of the web page). With
`--caption_col top_caption` they are the caption itself.

Opening reads the headers of all tars. Prepare sets of more than a few dozen files first, one shard
per file, with any number of processes:

    python -m sphinx_jax.prepare --source=laion --root=ROOT --output=OUTPUT

Licence: the metadata is CC BY 4.0; images and texts belong to their owners.
Homepages: https://laion.ai/blog/laion-400-open-dataset and https://laion.ai/blog/laion-coco
"""

import itertools
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sphinx_jax.core.progress import Progress, log
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import unique_ids
from sphinx_jax.datasets.parquet import Parquet

# File name extension -> kind of a sample's member.
_KINDS = {
  'jpg': 'image',
  'jpeg': 'image',
  'png': 'image',
  'webp': 'image',
  'txt': 'text',
  'json': 'metadata',
}
_MANY_TARS = 50  # Above it, opening the tars takes minutes, and the log advises to prepare them.


class _Member(NamedTuple):
  """Place of a member's data in its tar, in bytes."""

  offset: int
  size: int


class _Sample(NamedTuple):
  """A sample of a tar. `members` has its members by kind."""

  tar: Path
  key: str
  members: dict[str, _Member]


class Laion(Family):
  """Samples of webdataset tars. A sample without an image or a caption is a bad example.

  Opening reads each tar once in sequence and keeps the places of its members in memory (seconds for
  10,000 samples). A tar that is cut short or damaged gives the samples before the damage, and is
  logged.

  Settings:
    files: pattern or list of the tars under root. '' selects all.
    caption: 'caption' is the .txt file, or the field of the .json file if there is no .txt. Another
      name is a field of the .json file.
  """

  NAME = 'laion'
  TASKS = ('caption',)
  SPLITS = ('train',)
  PATTERN = '*.tar'

  def _open(self, *, files: str | Sequence[str] = '', caption: str = 'caption') -> None:
    self._caption = caption
    tars = self._list_files(self.root, files)
    if len(tars) > _MANY_TARS:
      log.info(
        "source 'laion': reading the headers of %d tars; python -m sphinx_jax.prepare "
        '--source=laion --root=%s --output=... makes a set that opens at once',
        len(tars),
        self.root,
      )
    self.broken: dict[str, str] = {}
    self._samples: list[_Sample] = []
    for tar in Progress(tars, what='laion: tars'):
      samples, damage = _read_headers(tar)
      self._samples += samples
      if damage:
        self.broken[str(tar)] = damage
    if self.broken:
      log.warning(
        "source 'laion': %d of %d tars are damaged: %s",
        len(self.broken),
        len(tars),
        '; '.join(f'{path}: {reason}' for path, reason in list(self.broken.items())[:3]),
      )
    if not self._samples:
      raise self._error(
        f'{len(tars)} tars without a sample ({tars[0]}, ...)',
        'tars as img2dataset writes them',
        'download them again',
      )

  def __len__(self) -> int:
    return len(self._samples)

  def item(self, index: int) -> Item:
    """Raises BadExample ('missing image', 'no caption', 'cut short', 'malformed record')."""
    sample = self._samples[index]
    name = f'{sample.tar.stem}/{sample.key}'
    if 'image' not in sample.members:
      raise BadExample('missing image', f'{name}: the tar has no image with this key')
    image = _read_member(name, sample, 'image')
    return Item(name, (image,), {'caption': self._read_caption(name, sample)})

  def _read_caption(self, name: str, sample: _Sample) -> str:
    caption = None
    try:
      if self._caption == 'caption' and 'text' in sample.members:
        return _read_member(name, sample, 'text').decode('utf-8-sig')
      if 'metadata' in sample.members:
        caption = json.loads(_read_member(name, sample, 'metadata'))[self._caption]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
      raise BadExample('malformed record', f'{name}: {type(error).__name__} {error}') from error
    if not isinstance(caption, str):
      raise BadExample('no caption', f'{name}: {self._caption!r} is {caption!r:.80}')
    return caption


def _read_headers(path: Path) -> tuple[list[_Sample], str]:
  """Returns the samples of a tar, and its damage or ''."""
  samples: list[_Sample] = []
  damage = ''
  try:
    with tarfile.open(path, 'r:') as tar:
      for member in tar:
        key, _, extension = member.name.rpartition('/')[2].partition('.')
        kind = _KINDS.get(extension.lower())
        if not member.isfile() or kind is None:
          continue
        # The members of a sample follow each other, as in webdataset.
        if not samples or samples[-1].key != key or kind in samples[-1].members:
          samples.append(_Sample(path, key, {}))
        samples[-1].members[kind] = _Member(member.offset_data, member.size)
      # tarfile stops without an error at a damaged header. A complete tar ends with zeros.
      tar.fileobj.seek(tar.offset)
      if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        damage = f'no header at byte {tar.offset}'
  except (tarfile.TarError, OSError, ValueError, EOFError) as error:
    damage = str(error) or type(error).__name__
  keys = unique_ids(sample.key for sample in samples)
  printable = [
    key.encode('utf-8', 'surrogateescape').decode('utf-8', 'backslashreplace') for key in keys
  ]
  return [sample._replace(key=key) for sample, key in zip(samples, printable)], damage


def _read_member(name: str, sample: _Sample, kind: str) -> bytes:
  """Returns the data of a member. Raises BadExample ('missing image', 'cut short')."""
  offset, size = sample.members[kind]
  try:
    with open(sample.tar, 'rb') as file:
      file.seek(offset)
      data = file.read(size)
  except OSError as error:
    raise BadExample('missing image', f'{name}: {error}') from error
  if len(data) < size:
    raise BadExample(
      'cut short', f'{name}: {size - len(data)} bytes are missing at the end of the tar'
    )
  return data


class LaionParquet(Family):
  """Rows of parquet files whose download succeeded.

  Opening reads the footers and the columns status and key. A row is read with its row group (100
  rows as img2dataset writes them).

  Settings:
    files: pattern or list of the parquet files under root. '' selects all.
    caption: column of the caption.
  """

  NAME = 'laion_parquet'
  TASKS = ('caption',)
  SPLITS = ('train',)
  PATTERN = '*.parquet'

  def _open(self, *, files: str | Sequence[str] = '', caption: str = 'caption') -> None:
    self._caption = caption
    paths = self._list_files(self.root, files)
    columns = [('jpg', 'png', 'webp'), (caption,), ('key',)]
    self._file = Parquet(self.NAME, paths, columns)
    self.broken = self._file.broken
    # Names of the rows whose key occurred before in the file.
    self._repeated: dict[tuple[int, int, int], str] = {}
    rows = list(self._find_rows())
    if not rows:
      raise self._error(
        f'no row whose status is success in {len(paths)} files',
        'downloaded images',
        'see the stats that img2dataset wrote',
      )
    self._rows = np.array(rows, np.int64)  # [items, (file, group, row)]

  def __len__(self) -> int:
    return len(self._rows)

  def item(self, index: int) -> Item:
    """Raises BadExample ('missing image', 'no caption', 'damaged file')."""
    file, group, row = (int(number) for number in self._rows[index])
    image, caption, key = self._file.row(file, group, row)
    key = self._repeated.get((file, group, row), key)
    name = f'{self._file.path(file).stem}/{key}'
    if not isinstance(image, bytes):
      raise BadExample('missing image', f'{name}: the row has no image')
    if not isinstance(caption, str):
      raise BadExample('no caption', f'{name}: {self._caption!r} is {caption!r:.80}')
    return Item(name, (image,), {'caption': caption})

  def _find_rows(self) -> Iterator[tuple[int, int, int]]:
    """The usable rows as (file, group, row)."""
    groups = Progress(self._file.groups, what='laion_parquet: rows')
    for file, groups_of_file in itertools.groupby(groups, lambda group: group.file):
      status = self._file.file_column(file, 'status')
      keys = self._file.file_column(file, 'key')
      names = unique_ids(map(str, keys or ()))
      rows = [(file, group.group, row) for group in groups_of_file for row in range(group.rows)]
      for number, row in enumerate(rows):
        if status is None or status[number] == 'success':
          if keys and names[number] != str(keys[number]):
            self._repeated[row] = names[number]
          yield row
