"""Two halves of held-out data: one to choose a mix by, the other to report the chosen one."""

from collections.abc import Mapping, Sequence
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.data.record import Record, Source

CHOICE, REPORT = 'choice', 'report'
_FIRST = {CHOICE: 0, REPORT: 1}


def of_batches(validation: Mapping[str, Sequence[Any]], half: str) -> dict[str, Sequence[Any]]:
  """Returns every second batch of each validation set.

  Args:
    validation: name -> batches.
    half: `CHOICE` or `REPORT`.

  Raises:
    SphinxError: a set has a single batch.
  """
  for name, batches in validation.items():
    if len(batches) < 2:
      raise errors.make(
        f"validation set '{name}'",
        f'{len(batches)} batches',
        'at least two: one half chooses the mix, the other reports it',
        'raise eval_batches of the config',
      )
  return {name: batches[_FIRST[half] :: 2] for name, batches in validation.items()}


class Half(Source):
  """Every second record of a source.

  Args:
    source: the whole.
    half: `CHOICE` or `REPORT`.
  """

  def __init__(self, source: Source, half: str) -> None:
    self._source, self._first = source, _FIRST[half]
    self.name, self.files = source.name, source.files

  def __len__(self) -> int:
    return (len(self._source) + 1 - self._first) // 2

  def __getitem__(self, index: int) -> Record:
    return self._source[2 * index + self._first]
