"""Scores of answered benchmarks: by their protocols, beside the published figures, and as lines of text."""

from collections.abc import Mapping, Sequence
from typing import Any

from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark
from sphinx_jax.evaluation.protocols import PROTOCOLS

_COLUMNS = ('benchmark', 'metric', 'score', 'published', 'questions', 'skipped')


def result(benchmark: Benchmark, entries: Sequence[dict], official: bool = False) -> dict[str, Any]:
  """The scores of one benchmark, as results.json holds them.

  Args:
    benchmark: whose questions these are.
    entries: as of `predictions.entries`.
    official: score as the official SPHINX script does.

  Returns:
    {'protocol', 'metrics': {name: as the protocol defines it}, which is empty where the truth is hidden, 'metric': the one
    that stands for the benchmark, 'published': its figure as papers write it, or None, 'variant', 'note', 'questions',
    'skipped': how many could not be asked and so count as wrong, 'official'}.

  Raises:
    SphinxError: see the protocol.
  """
  return {
    'protocol': benchmark.protocol,
    'metrics': {}
    if benchmark.hidden
    else PROTOCOLS[benchmark.protocol](entries, official=official),
    'metric': benchmark.settings.get('metric', benchmark.protocol),
    **{key: benchmark.settings.get(key) for key in ('published', 'variant', 'note')},
    'questions': len(entries),
    'skipped': sum('skipped' in entry for entry in entries),
    'official': official,
  }


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
  """Results as cells of a table, a row a metric, the one with a published figure first."""
  found = []
  for name, one in results.items():
    for metric in sorted(one['metrics'], key=lambda metric: metric != one['metric']) or [
      one['metric']
    ]:
      published = one['published'] if metric == one['metric'] else None
      found.append(
        {
          'benchmark': name,
          'metric': metric,
          'score': shown(one['protocol'], metric, one['metrics'].get(metric)),
          'published': '' if published is None else f'{published:g}',
          'questions': str(one['questions']),
          'skipped': str(one['skipped']),
        }
      )
  return found


def shown(protocol: str, metric: str, value: float | None) -> str:
  """A score as papers write it: in per cent, or in MME's points; None is one that only the server knows."""
  if value is None:
    return 'hidden'
  points = protocol == 'mme_score' and not metric.endswith((' acc', ' acc+'))
  return f'{value:.1f}' if points else f'{100 * value:.2f}'


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """The rows as text, in columns."""
  lines = [dict(zip(_COLUMNS, _COLUMNS)), *rows(results)]
  widths = {column: max(len(line[column]) for line in lines) for column in _COLUMNS}
  return '\n'.join(
    '  '.join(
      line[column].ljust(widths[column])
      if column in ('benchmark', 'metric')
      else line[column].rjust(widths[column])
      for column in _COLUMNS
    ).rstrip()
    for line in lines
  )
