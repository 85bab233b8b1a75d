"""Statistics of a checkpoint on data, on disk: in the layout of the checkpoint's own arrays.

This file is the only writer and reader of the key 'statistics' of a meta. Such a directory has no
config, so it is not taken for a model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax.checkpoint import content, store, stream
from sphinx_jax.core import errors
from sphinx_jax.core.progress import log
from sphinx_jax.parallel import hosts

KINDS = ('fisher', 'gram')
_KEY, _ITEM = 'statistics', 'params'


class Writer:
  """Writes statistics part by part, in a context; see `stream.Writer`.

  All processes of a run make one and call its methods alike. Process 0 writes.

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
    self._hash, self._writer = content.ContentHash(), None

    def open_writer() -> None:
      self._writer = stream.Writer(output, {_ITEM: shapes}, {})

    hosts.on_process_0(open_writer)

  def __enter__(self) -> 'Writer':
    return self

  def __exit__(self, *error: object) -> None:
    if error[0] is not None and self._writer is not None:
      self._writer.abandon()

  def write(self, path: str, value: np.ndarray, index: stream.Index) -> None:
    """Writes the next part of an array.

    Raises:
      SphinxError: it is not finite, or cannot be written.
    """
    if self._writer is None:
      return
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
    entry = {_KEY: {**self._entry, **facts}, 'hash': self._hash.hexdigest()}
    hosts.on_process_0(lambda: self._writer.finish(**entry))


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


def shapes(
  kind: str, arrays: Mapping[str, stream.Array], stacked: Mapping[str, int]
) -> dict[str, tuple[int, ...]]:
  """The shapes that statistics of a model have, where it has them.

  Args:
    kind: one of KINDS.
    arrays: path -> array, of the model.
    stacked: path -> number of leading axes along which tensors are stacked.
  """
  if kind == 'fisher':
    return {path: array.shape for path, array in arrays.items()}
  found = {}
  for path, array in arrays.items():
    ends = stacked.get(path, 0)
    found[path] = (*array.shape[:ends], *array.shape[ends : ends + 1] * 2)
  return found


def open_statistics(
  directories: Sequence[store.Path],
  kind: str,
  inputs: Sequence[store.Path],
  sources: Sequence[Mapping[str, Any]],
  expected: Mapping[str, tuple[int, ...]],
) -> list[dict[str, stream.StoredArray]]:
  """Opens the statistics of the inputs of a mix; nothing is read yet.

  A parameter that some input did not train has no statistics there. It is logged, and left out.

  Args:
    directories: of the statistics, one for each input.
    kind: one of KINDS.
    inputs: the inputs, for messages.
    sources: what `merged.Opened.source` is of them.
    expected: from `shapes`, of the model.

  Returns:
    For each input, path -> array; all have the same paths.

  Raises:
    SphinxError: statistics are of another kind, of other weights or of another model, or they have
      no parameter in common.
  """
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
  for directory, arrays in zip(directories, opened):
    for path, array in arrays.items():
      if expected.get(path) != array.shape:
        raise errors.make(
          f"statistics '{directory}'",
          f'{path} of shape {array.shape}',
          f'{expected.get(path, "no such parameter")}, as the inputs have it',
          'make them again (python -m sphinx_jax.mix_stats)',
        )
  common = set.intersection(*map(set, opened))
  if not common:
    raise errors.make(
      f'statistics {", ".join(map(str, directories))}',
      'no parameter in common',
      'some that all inputs trained',
      'make them with one --config, whose `trainable` names the parameters',
    )
  if apart := sorted(set.union(*map(set, opened)) - common):
    log.warning(
      'mixed linearly, as not all inputs have statistics of them: %d parameters, such as %s',
      len(apart),
      apart[0],
    )
  return [{path: arrays[path] for path in arrays if path in common} for arrays in opened]
