"""What a user asks about: the images of a folder, or the lines of a JSONL file.

Only ids are in memory; an item is read when it is asked for. The id of an image is its path, that
of a line its hash. So answers stay with their items when others are added or removed.
"""

import dataclasses
import glob
import itertools
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import xxhash

from sphinx_jax.core import errors, files, text
from sphinx_jax.core.progress import log
from sphinx_jax.data import images
from sphinx_jax.data.record import MARK, BadExample
from sphinx_jax.datasets import conversations, jsonl
from sphinx_jax.datasets.fields import unique_ids
from sphinx_jax.evaluation.benchmarks.benchmark import Question

_JSON = ('.json', '.jsonl')
_CARRIED = ('id', 'question_id')  # Keys of a line that its answer gets, too.


@dataclasses.dataclass(frozen=True)
class Items:
  """Questions of a user, in the form that `answering.answer` takes.

  The entry of a question is {'item': what its answer's line begins with}.

  Attributes:
    ids: of the questions, unique.
    read: returns the question of an index. It does not raise: a question may have a fault.
    max_new_tokens: length of the longest answer.
    unit: what an item is, for the log.
  """

  name: ClassVar[str] = 'answers'
  prefix: ClassVar[str] = ''
  prompts: ClassVar[Mapping[str, str]] = {}  # Ids and settings stand for them.

  ids: Sequence[str]
  read: Callable[[int], Question]
  max_new_tokens: int
  unit: str

  @property
  def questions(self) -> Sequence[Question]:
    """The questions, read when they are asked for."""
    return _Lazy(self.read, len(self.ids))

  @property
  def digest(self) -> str:
    """A hash of all ids."""
    return text.digest('\n'.join(self.ids))


class _Lazy(Sequence[Question]):
  """A sequence of `count` items that `read` returns by index."""

  def __init__(self, read: Callable[[int], Question], count: int) -> None:
    self._read, self._count = read, count

  def __len__(self) -> int:
    return self._count

  def __getitem__(self, index: int) -> Question:
    if not 0 <= index < self._count:
      raise IndexError(index)
    return self._read(index)


def open_items(
  place: str,
  prompt: str | None,
  max_new_tokens: int,
  limit: int | None = None,
  exclude: str | None = None,
) -> Items:
  """Opens the input of a user. No image is read.

  Args:
    place: a folder, whose images in all subfolders are taken; a .jsonl or .json file, packed or
      not; an image; or a glob pattern.
    prompt: the question about every image, and about every line without one.
    max_new_tokens: length of the longest answer.
    limit: number of first items to take, or None for all.
    exclude: folder whose images are left out, or None.

  Raises:
    SphinxError: there is no image or no line, or no prompt for images.
  """
  if files.is_remote(place):
    raise errors.make(f"--input '{place}'", 'a bucket', 'a local path', 'copy or mount it')
  if os.path.isfile(place) and place.lower().removesuffix('.gz').endswith(_JSON):
    return _open_lines(Path(place), prompt, max_new_tokens, limit)
  if prompt is None:
    raise errors.make('--prompt', 'none', 'a question about the images', "add --prompt='...'")
  _check_prompt(prompt)
  root, names = _find_images(place, exclude)
  names = names[:limit]

  def read(index: int) -> Question:
    name = names[index]
    return Question(
      name, (root / name,), prompt, {'item': {'image': name}}, marks='loose', location=name
    )

  return Items(names, read, max_new_tokens, 'images')


def _check_prompt(prompt: str) -> None:
  """Raises SphinxError for a prompt with more places than the one image of an item."""
  marks = prompt.count(MARK)
  if marks > 1:
    raise errors.make(
      '--prompt', f'{marks} {MARK} marks', 'at most one', 'list the images of a question in a JSONL'
    )


def _find_images(place: str, exclude: str | None) -> tuple[Path, list[str]]:
  """Returns a directory and the sorted paths of images, which are relative to it.

  The paths of a pattern are those that it matches, so the directory is the current one. Hidden
  files, and those in hidden folders, are left out, as are files whose name is not that of an image.
  """
  if os.path.isdir(place):
    root, found = Path(place), _walk(place, exclude)
  elif os.path.isfile(place):
    return Path(), [place]
  else:
    root, found = Path(), filter(os.path.isfile, glob.iglob(place, recursive=True))
    excluded = Path(os.path.abspath(exclude)) if exclude else None
    found = (
      path
      for path in found
      if excluded is None or not Path(os.path.abspath(path)).is_relative_to(excluded)
    )
  names, others = [], Counter()
  for name in found:
    ending = os.path.splitext(name)[1].lower()
    if ending.removeprefix('.') in images.ENDINGS:
      names.append(name)
    else:
      others[ending or 'no ending'] += 1
  counted = ', '.join(f'{count} {ending}' for ending, count in sorted(others.items())[:8])
  listed = f'files that are not named as images ({counted})'
  if not names:
    got = 'no file' if os.path.isdir(place) else 'no such file'
    raise errors.make(
      f"--input '{place}'",
      listed if others else got,
      f'images (.{", .".join(images.ENDINGS)}), or a .jsonl file',
      'check the path or the pattern',
    )
  if others:
    log.info("--input '%s': left out %s", place, listed)
  return root, sorted(set(names))


def _walk(root: str, exclude: str | None) -> Iterator[str]:
  """Yields the files under a folder relative to it, through links, but none of `exclude`."""

  def refuse(error: OSError) -> None:
    raise error

  excluded = os.path.realpath(exclude) if exclude else None
  seen = set()
  for folder, below, names in os.walk(root, onerror=refuse, followlinks=True):
    real = os.path.realpath(folder)
    if real in seen or real == excluded:  # A link may lead back up.
      below.clear()
      continue
    seen.add(real)
    below[:] = sorted(name for name in below if not name.startswith('.'))
    for name in names:
      if not name.startswith('.'):
        yield os.path.relpath(os.path.join(folder, name), root)


def _open_lines(path: Path, prompt: str | None, max_new_tokens: int, limit: int | None) -> Items:
  lines = jsonl.JsonItems(str(path), path)
  count = min(len(lines), len(lines) if limit is None else limit)
  ids = unique_ids(xxhash.xxh3_128_hexdigest(lines.text(index)) for index in range(count))
  root = path.parent

  def read(index: int) -> Question:
    try:
      location, item = lines[index]
    except BadExample as error:
      return Question(ids[index], (), prompt or '', {'item': {}}, fault=error)
    carried = _carried(item)
    try:
      return _read_line(ids[index], location, item, carried, prompt, root)
    except BadExample as error:
      return Question(
        ids[index], (), prompt or '', {'item': carried}, location=location, fault=error
      )

  return Items(ids, read, max_new_tokens, 'items')


def _read_line(
  key: str,
  location: str,
  item: Any,
  carried: dict[str, Any],
  prompt: str | None,
  root: Path,
) -> Question:
  """Returns the question of a line. Raises BadExample."""
  conversation = conversations.read(location, _with_question(location, item, prompt))
  history, question = conversations.read_question(location, conversation.messages)
  if not all(map(text.is_unicode, (question, *filter(None, itertools.chain(*history))))):
    raise BadExample('not unicode', f'{location}: a text is not unicode')
  media = conversation.media
  shown = _shown([medium.path for medium in media])
  pictures = [
    image
    for medium in media
    for image in jsonl.read_media(location, medium, root, lambda _, file: file)
  ]
  return Question(
    id=key,
    images=tuple(pictures),
    prompt=question,
    entry={'item': carried | shown},
    history=history,
    marks=conversation.marks,
    location=location,
  )


def _with_question(location: str, item: Any, prompt: str | None) -> Any:
  """Returns an item in one of the forms of `conversations.read`.

  Its question is under "prompt", or in one of these forms. Without either it is `prompt`. An answer
  that the item may have is not used.

  Raises:
    BadExample: there is no question.
  """
  if not isinstance(item, dict):
    return item
  asked = item.get('prompt')
  if asked is None:
    if any(item.get(key) for key in conversations.LISTS):
      return item
    for questions, answer in conversations.PAIRS:
      if questions[0] in item:
        return item | {answer: 'unknown'}
    asked = prompt
  if not isinstance(asked, str) or not asked:
    keys = ', '.join(f'"{key}"' for key in item)
    raise BadExample(
      'no question',
      f'{location}: no text "prompt", "conversations" or "messages" among {keys:.200}, '
      'and no --prompt',
    )
  rest = {key: value for key, value in item.items() if key != 'prompt'}
  return rest | {'conversations': [{'from': 'human', 'value': asked}]}


def _carried(item: Any) -> dict[str, Any]:
  """Returns what the answer to a line has of it: ids, and paths of images as given.

  The paths of a line that can be read are replaced by those of all its images.
  """
  if not isinstance(item, dict):
    return {}
  carried = {key: item[key] for key in _CARRIED if key in item}
  for key in ('image', 'images'):
    value = item.get(key)
    listed = [value] if isinstance(value, str) else value
    if isinstance(listed, list) and all(isinstance(path, str) for path in listed):
      return carried | _shown(listed)
  return carried


def _shown(given: Sequence[str]) -> dict[str, Any]:
  """Returns paths as part of an answer's line. Of a data: URL there is the hash of its text."""
  shown = [
    f'{path.partition(",")[0][:80]},{text.digest(path)}' if path.startswith('data:') else path
    for path in given
  ]
  if len(shown) == 1:
    return {'image': shown[0]}
  return {'images': shown} if shown else {}
