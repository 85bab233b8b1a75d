"""Statistics of a checkpoint on data, on disk: in the layout of the checkpoint's own arrays.

This file is the only writer and reader of the key 'statistics' of a meta. Such a directory has no
config, so it is not taken for a model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.checkpoint import content, store, stream
from sphinx_jax.core import errors

KINDS = ('fisher', 'gram')
_KEY, _ITEM = 'statistics', 'params'


class Writer:
  """Writes statistics part by part, in a context; see `stream.Writer`.

  Args:
    output: a new directory.
    kind: one of KINDS.
    of: what `merged.source_of` returns of the checkpoint.
    shapes: path -> shape and dtype.
    facts: what else is recorded, JSON-able.

  Raises:
    SphinxError: as `stream.Writer`.
  """

  def __init__(
    self,
    output: store.Path,
    kind: str,
    of: Mapping[str, Any],
    shapes: stream.Shapes,
    **facts: Any,
  ) -> None:
    self._entry, self._shapes = {'kind': kind, 'of': dict(of), **facts}, shapes
    self._writer, self._hash = stream.Writer(output, {_ITEM: shapes}, {}), content.ContentHash()

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *error: object) -> None:
    if error[0] is not None:
      self._writer.abandon()

  def write(self, path: str, value: np.ndarray, index: stream.Index) -> None:
    """Writes the next part of an array.

    Raises:
      SphinxError: it is not finite, or cannot be written.
    """
    if not content.is_finite(value):
      raise errors.make(
        'statistics',
        f'NaN or infinity in {path}',
        'finite numbers',
        'check the checkpoint and the data',
      )
    self._hash.update(path, self._shapes[path], value)
    self._writer.write(_ITEM, path, value, index)

  def finish(self, **facts: Any) -> None:
    """Records further facts, and makes the directory complete."""
    self._writer.finish(**{_KEY: {**self._entry, **facts}, 'hash': self._hash.hexdigest()})


def is_statistics(directory: store.Path) -> bool:
  """Whether a directory holds statistics."""
  return store.is_checkpoint(directory) and _KEY in store.load_meta(directory)


def check_kind(directory: store.Path, kind: str) -> dict[str, Any]:
  """Returns what a directory of statistics records: 'kind', 'of', 'examples' and others.

  Raises:
    SphinxError: it holds something else, or statistics of another kind.
  """
  found = store.load_meta(directory).get(_KEY)
  if found is None or found['kind'] != kind:
    raise errors.make(
      f"statistics '{directory}'",
      'a checkpoint of weights' if found is None else f'statistics of kind {found["kind"]}',
      f'statistics of kind {kind}',
      f'make them: python -m sphinx_jax.mix_stats --statistics={kind} --checkpoint=INPUT '
      '--output=DIR',
    )
  return found


def open_statistics(
  directories: Sequence[store.Path],
  kind: str,
  inputs: Sequence[store.Path],
  sources: Sequence[Mapping[str, Any]],
) -> list[dict[str, stream.StoredArray]]:
  """Opens the statistics of every input of a mix; nothing is read yet.

  Args:
    directories: of the statistics, one for each input.
    kind: one of KINDS.
    inputs: the inputs, for messages.
    sources: what `merged.Opened.source` is of them.

  Returns:
    For each input, path -> array; all have the same paths and shapes.

  Raises:
    SphinxError: there are more or fewer than inputs, one is of another kind or of other weights, or
      they differ in leaves.
  """
  if len(directories) != len(inputs):
    raise errors.make(
      '--statistics',
      f'{len(directories)} directories for {len(inputs)} inputs',
      'one for each input, in their order',
      f'for instance --statistics={",".join(f"STATS{i}" for i in range(1, len(inputs) + 1))}',
    )
  for directory, place, source in zip(directories, inputs, sources):
    of = check_kind(directory, kind)['of']
    if of['identity'] != source['identity'] or 'adapter' in source:
      raise errors.make(
        f"statistics '{directory}'",
        f"those of '{of['directory']}' at step {of['step']}, whose weights are others",
        f"those of input '{place}'",
        'give them in the order of the inputs, or make them again (python -m sphinx_jax.mix_stats)',
      )
  opened = [stream.read(directory) for directory in directories]
  shapes = [{path: array.shape for path, array in arrays.items()} for arrays in opened]
  for directory, own in zip(directories[1:], shapes[1:]):
    different = sorted(
      path for path in shapes[0].keys() | own if own.get(path) != shapes[0].get(path)
    )
    if different:
      raise errors.make(
        f"statistics '{directory}'",
        f"other leaves than those of '{directories[0]}', {len(different)} of them, such as "
        f'{different[0]}',
        'the same leaves',
        'give both runs one --config, so that the same parameters count as trained',
      )
  return opened
