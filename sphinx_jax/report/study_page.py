"""The page of a study, and its tables in Markdown. Both are made of `results.json` alone.

The results of studies that ran to their end are in the folder `studies` of this package, so that
the report of a recipe can show them: `cp DIR/results.json sphinx_jax/report/studies/NAME.json`.
"""

import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sphinx_jax.core import files
from sphinx_jax.report import html, study_plots
from sphinx_jax.report.plots import to_png

Comparison = Mapping[str, Any]

_FINISHED = pathlib.Path(__file__).with_name('studies')


def write(folder: os.PathLike, results: Mapping[str, Any]) -> None:
  """Writes report.html and study.md.

  Args:
    folder: directory of the study.
    results: as of `study_results.collect`.
  """
  folder = epath.Path(folder)
  figures = {
    f'differences/{name}': study_plots.differences(group)
    for name, group in results['groups'].items()
    if any(pair['mean'] for pair in group['pairs'])
  }
  figures |= {
    f'curves/{name}': study_plots.curves(name, curves)
    for name, curves in results['curves'].items()
    if len(curves) > 1
  }
  page = html.page(
    'study_page.html',
    results=results,
    images={name: html.data_url(to_png(figure), 'png') for name, figure in figures.items()},
  )
  files.write_atomic(folder / 'report.html', page)
  files.write_atomic(folder / 'study.md', '\n'.join(markdown(results)) + '\n')


def finished(names: Sequence[str]) -> dict[str, dict[str, Any]]:
  """Returns {study: its results} of those studies that this package has results of."""
  places = {name: _FINISHED / f'{name}.json' for name in names}
  return {name: files.read_json(place) for name, place in places.items() if place.exists()}


def markdown(results: Mapping[str, Any]) -> Iterator[str]:
  """Yields the lines of the tables."""
  done, steps, seconds = results['steps']
  yield f'{results["title"]}'
  yield ''
  yield f'`{results["command"]}`'
  yield ''
  yield f'Seeds: {results["seeds"]}. Steps: {done} of {steps}, in {seconds / 60:.0f} minutes.'
  yield ''
  yield from _table(
    ('change', 'updates', 'visual tokens', 'minutes a run', 'seeds'),
    (
      (
        name,
        str(change['updates']),
        str(change['visual_tokens']),
        '-' if change['seconds'] is None else f'{change["seconds"] / 60:.1f}',
        str(change['seeds']),
      )
      for name, change in results['changes'].items()
    ),
  )
  for group, compared in results['groups'].items():
    kind = 'loss, lower is better' if compared['lower_is_better'] else 'score, higher is better'
    yield ''
    yield f'`{group}` ({kind}), average over tasks:'
    yield ''
    rows = [(pair['change'], pair['baseline'], pair['mean']) for pair in compared['pairs']]
    yield from _comparisons(('change', 'baseline'), rows)
    rows = [
      (pair['change'], task, comparison)
      for pair in compared['pairs']
      for task, comparison in pair['tasks'].items()
      if len(pair['tasks']) > 1
    ]
    if rows:
      yield ''
      yield f'`{group}`, each task:'
      yield ''
      yield from _comparisons(('change', 'task'), rows)


def _comparisons(
  names: Sequence[str], rows: Sequence[tuple[str, str, Comparison | None]]
) -> Iterator[str]:
  columns = (*names, 'of the baseline', 'of the change', 'difference (95 %)', 'p', 'verdict')
  yield from _table(
    columns,
    (
      (
        first,
        second,
        *(
          ('-', '-', '-', '-', 'not finished')
          if compared is None
          else (
            _number(compared['baseline']),
            _number(compared['changed']),
            f'{_signed(compared["difference"])} '
            f'[{_signed(compared["low"])}, {_signed(compared["high"])}]',
            _small(compared['p_corrected']),
            compared['verdict'],
          )
        ),
      )
      for first, second, compared in rows
    ),
  )


def _table(columns: Sequence[str], rows: Iterator[Sequence[str]]) -> Iterator[str]:
  yield f'| {" | ".join(columns)} |'
  yield '|---' * len(columns) + '|'
  for row in rows:
    yield f'| {" | ".join(row)} |'


def _number(value: float) -> str:
  return f'{value:.3f}'


def _signed(value: float) -> str:
  return f'{value:+.3f}'


def _small(p: float | None) -> str:
  """A corrected p-value as text."""
  if p is None:
    return '-'
  return f'{p:.3f}' if p >= 0.001 else '< 0.001'
