"""Scores of answered benchmarks, beside the published ones, as results and as a text table."""

from collections.abc import Mapping, Sequence
from typing import Any

from sphinx_jax.core import text
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark
from sphinx_jax.evaluation.protocols import PROTOCOLS, UNREAD

_COLUMNS = ('benchmark', 'metric', 'score', 'published', 'questions', 'skipped')


def result(benchmark: Benchmark, entries: Sequence[dict], official: bool = False) -> dict[str, Any]:
  """Scores one benchmark and returns its entry in results.json.

  Args:
    benchmark: an answered benchmark.
    entries: its entries, see `predictions.entries`.
    official: score like the official SPHINX script.

  Returns:
    {'protocol', 'metrics': {name: value as the protocol defines it}, empty for a hidden truth,
    'metric': the metric that represents the benchmark, 'published': its published value, or None,
    'variant', 'note', 'questions', 'skipped': number of questions that could not be asked and
    count as wrong, 'official', 'unread': {what is missing: number of answers}, see `UNREAD`}.

  Raises:
    SphinxError: see the protocol.
  """
  answered = [entry for entry in entries if 'skipped' not in entry]
  metrics, unread = {}, {'empty': sum(not entry['answer'].strip() for entry in answered)}
  if not benchmark.hidden:
    metrics = PROTOCOLS[benchmark.protocol](entries, official=official)
    if benchmark.protocol in UNREAD:
      unread |= UNREAD[benchmark.protocol](answered)
  settings = benchmark.settings
  return {
    'protocol': benchmark.protocol,
    'metrics': metrics,
    'metric': settings.get('metric', benchmark.protocol),
    'published': settings.get('published'),
    'variant': settings.get('variant'),
    'note': settings.get('note'),
    'questions': len(entries),
    'skipped': sum('skipped' in entry for entry in entries),
    'official': official,
    'unread': {reason: count for reason, count in unread.items() if count},
  }


def rows(results: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
  """Returns the cells of a table, one row per metric. A benchmark's main metric comes first.

  Args:
    results: {benchmark: result}, see `result`.
  """
  cells = []
  for name, benchmark_result in results.items():
    main, metrics = benchmark_result['metric'], benchmark_result['metrics']
    names = sorted(metrics, key=lambda metric, main=main: metric != main) or [main]
    for metric in names:
      published = benchmark_result['published'] if metric == main else None
      cells.append(
        {
          'benchmark': name,
          'metric': metric,
          'score': format_score(benchmark_result['protocol'], metric, metrics.get(metric)),
          'published': '' if published is None else f'{published:g}',
          'questions': str(benchmark_result['questions']),
          'skipped': str(benchmark_result['skipped']),
        }
      )
  return cells


def format_score(protocol: str, metric: str, value: float | None) -> str:
  """Returns a score as papers write it: in percent, or in points for MME.

  Args:
    protocol: name of the protocol.
    metric: name of the metric.
    value: the score, or None if only the benchmark's server knows the truth.
  """
  if value is None:
    return 'hidden'
  in_points = protocol == 'mme_score' and not metric.endswith((' acc', ' acc+'))
  return f'{value:.1f}' if in_points else f'{100 * value:.2f}'


def table(results: Mapping[str, Mapping[str, Any]]) -> str:
  """Returns `rows` as text in columns, with a header, and a line for each kind of unread answer."""
  cells = [[row[column] for column in _COLUMNS] for row in rows(results)]
  unread = [
    f'{name}: {count} of {benchmark_result["questions"]} answers {reason}'
    for name, benchmark_result in results.items()
    for reason, count in benchmark_result['unread'].items()
  ]
  return '\n'.join([text.table([_COLUMNS, *cells], align='llrrrr'), *unread])
