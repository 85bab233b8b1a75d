"""The report of a finished recipe: one self-contained HTML page, its PNGs and `metrics.json`.

`write` reads only files of the recipe's steps, so a page can be written again at any time:

    evaluation   directory of `held_out.evaluate`: results.json, <task>.final.jsonl, images/
    metrics      {step of the recipe: metrics.jsonl}, lines {"step": int, "loss": float,
                 "loss/<task>": float, ...}
    pretraining  {objective: metrics.jsonl}, with the same lines, and "accuracy/<encoder>" of some
    curve        [{"coefficient", "real", "synthetic"}], or a JSON file of it. The coefficient is
                 the share of the real parent

It writes report.html, metrics.json, report/{scores,loss,pretraining,mix_curve,overview}.png and
report/samples/*.png into the recipe's workdir.
"""

import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from sphinx_jax.core import errors, files
from sphinx_jax.report import drawing, html, plots, study_page, study_plots

Curve = Sequence[Mapping[str, float]]

_SAMPLES_PER_TASK = 4
_MAX_HIGHLIGHTS = 10
_SPEEDS = {  # Name in metrics.jsonl -> name on the page.
  'examples_per_second': 'examples / s',
  'tokens_per_second': 'tokens / s',
  'useful_share': 'useful positions',
  'data_wait_share': 'waiting for data',
}
_METRICS_FIELDS = ('metric', 'blind', 'final', 'low', 'high', 'examples')


def write(
  workdir: str | os.PathLike,
  *,
  evaluation: str | os.PathLike,
  metrics: Mapping[str, str | os.PathLike],
  curve: Curve | str | os.PathLike,
  seconds: Mapping[str, float],
  peak_rss_bytes: float,
  config: Mapping[str, Any],
  mixed: float = 0.5,
  studies: Sequence[str] = (),
  targets: Mapping[str, float] | None = None,
  pretraining: Mapping[str, str | os.PathLike] | None = None,
) -> pathlib.Path:
  """Writes the page, its images and metrics.json.

  Args:
    workdir: directory of the recipe.
    evaluation: directory of the evaluation, see above.
    metrics: metrics.jsonl of each training step, in the order of the recipe.
    curve: see above. It is empty if the recipe mixes no weights.
    seconds: {step of the recipe: wall-clock seconds}.
    peak_rss_bytes: largest resident host memory of the recipe.
    config: the resolved config as a plain dict.
    mixed: the coefficient of the real parent with which the recipe continued.
    studies: studies whose results the page shows, if this package has them.
    targets: {task: the score to reach}.
    pretraining: see above. None: the recipe pretrains no encoders.

  Returns:
    The path of report.html.

  Raises:
    SphinxError: a file that the page is made of is missing.
  """
  workdir, evaluation = pathlib.Path(workdir), pathlib.Path(evaluation)
  folder = workdir / 'report'
  (folder / 'samples').mkdir(parents=True, exist_ok=True)
  results = _read_json(evaluation / 'results.json')
  if not isinstance(curve, (list, tuple)):
    curve = _read_json(pathlib.Path(curve))
  logs = {name: _read_lines(pathlib.Path(path)) for name, path in metrics.items()}
  objectives = {name: _read_lines(pathlib.Path(path)) for name, path in (pretraining or {}).items()}
  samples = {task: _samples(evaluation, task, folder / 'samples') for task in results}

  summary = {
    'tasks': {
      task: {field: result[field] for field in _METRICS_FIELDS} for task, result in results.items()
    },
    'mix_curve': [
      {key: point[key] for key in ('coefficient', 'real', 'synthetic')} for point in curve
    ],
    'seconds': dict(seconds),
    'peak_rss_bytes': int(peak_rss_bytes),
  }
  (workdir / 'metrics.json').write_text(json.dumps(summary, indent=2))

  figures = {'scores': plots.score_bars(results), 'loss': plots.loss_curves(logs)}
  if objectives:
    figures['pretraining'] = plots.loss_curves(objectives, ylabel='loss')
  if curve:
    figures['mix_curve'] = plots.mix_curve(curve, mixed)
  found = study_page.finished(studies)
  if found:
    figures['studies'] = study_plots.overview(found)
  figures['overview'] = plots.overview(results, curve, mixed, _highlights(samples))
  pngs = {name: plots.to_png(figure) for name, figure in figures.items()}
  for name, png in pngs.items():
    (folder / f'{name}.png').write_bytes(png)

  page = html.page(
    'recipe_page.html',
    tasks=_task_rows(results, targets or {}),
    images={name: html.data_url(png, 'png') for name, png in pngs.items()},
    curve=curve_verdict(curve, mixed) if curve else None,
    objectives=_objective_rows(objectives),
    samples=samples,
    studies=found,
    speeds=_speeds(logs),
    speed_names=_SPEEDS,
    seconds=seconds,
    total=sum(seconds.values()),
    peak=peak_rss_bytes / 2**30,
    config=json.dumps(config, indent=2),
  )
  files.write_atomic(workdir / 'report.html', page)
  return workdir / 'report.html'


def curve_verdict(curve: Curve, mixed: float) -> dict[str, Any]:
  """Compares the losses of the used mix with those of its parents.

  Args:
    curve: points of the curve. The parents are its ends.
    mixed: the coefficient that was used.

  Returns:
    {'coefficient': the point nearest to `mixed`, 'mixed': its loss, 'parents': {'real',
    'synthetic'}: their losses, 'best': coefficient of the lowest loss, 'ok': whether the mix is no
    worse than the better parent}. Losses are averages over both domains.
  """
  average = {point['coefficient']: (point['real'] + point['synthetic']) / 2 for point in curve}
  used = min(average, key=lambda coefficient: abs(coefficient - mixed))
  parents = {'real': average[max(average)], 'synthetic': average[min(average)]}
  return {
    'coefficient': used,
    'mixed': average[used],
    'parents': parents,
    'best': min(average, key=average.get),
    'ok': average[used] <= min(parents.values()),
  }


def _task_rows(
  results: Mapping[str, Mapping[str, Any]], targets: Mapping[str, float]
) -> list[dict[str, Any]]:
  """Returns the rows of the page's table of scores."""
  rows = []
  for task, result in results.items():
    # Results of an older version have no interval of the blind score.
    blind_high = result.get('blind_high', result['blind'])
    rows.append(
      {
        'name': task,
        **result,
        'beats': result['low'] > blind_high,
        'target': targets.get(task),
        'reached': task in targets and result['final'] >= targets[task],
      }
    )
  return rows


def _objective_rows(logs: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
  """Returns the rows of the page's table of pretraining: first and last values of every loss."""
  rows = []
  for name, lines in logs.items():
    for key in sorted(key for key in lines[-1] if key.startswith('loss/')):
      part = key.removeprefix('loss/')
      rows.append(
        {
          'name': name,
          'part': part,
          'updates': lines[-1]['step'],
          'first': lines[0][key],
          'last': lines[-1][key],
          'accuracy': lines[-1].get(f'accuracy/{part}'),
        }
      )
  return rows


def _samples(evaluation: pathlib.Path, task: str, folder: pathlib.Path) -> list[dict[str, Any]]:
  """Draws the first questions of a task that have an image.

  Args:
    evaluation: directory of the evaluation.
    task: name of the task.
    folder: where the drawings are written.

  Returns:
    Samples for the template, at most `_SAMPLES_PER_TASK`.
  """
  lines = _read_lines(evaluation / f'{task}.final.jsonl')
  with_image = [line for line in lines if 'image' in line]
  samples = []
  for number, line in enumerate(with_image[:_SAMPLES_PER_TASK]):
    image = np.asarray(Image.open(evaluation / line['image']).convert('RGB'))
    if drawing.is_drawable(line['answer']):
      panels = {'prediction': line['prediction'], 'truth': line['answer']}
    else:
      panels = {'': ''}
    pngs = {}
    for name, answer in panels.items():
      png = _png(drawing.draw_answer(image, answer, asked=line['instruction']))
      suffix = f'-{name}' if name else ''
      (folder / f'{task}-{number}{suffix}.png').write_bytes(png)
      pngs[name] = png
    numerator, denominator = line['numerator'], line['denominator']
    samples.append(
      {
        'id': line['id'],
        'instruction': line['instruction'],
        'prediction': line['prediction'],
        'answer': line['answer'],
        'panels': {name: html.data_url(png, 'png') for name, png in pngs.items()},
        'first': next(iter(pngs.values())),
        'score': f'{numerator:g} / {denominator:g}',
        'right': denominator > 0 and numerator >= 0.5 * denominator,
      }
    )
  return samples


def _highlights(
  samples: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[tuple[str, str, str, np.ndarray]]:
  """Returns one sample per task for the overview: the first that is right, or the first.

  Returns:
    [(task, question, answer, image uint8[Y,X,3]), ...].
  """
  chosen = []
  for task, task_samples in samples.items():
    if not task_samples:
      continue
    right = [sample for sample in task_samples if sample['right']]
    sample = right[0] if right else task_samples[0]
    image = np.asarray(Image.open(io.BytesIO(sample['first'])))
    chosen.append((task, sample['instruction'], sample['prediction'], image))
  return chosen[:_MAX_HIGHLIGHTS]


def _speeds(
  logs: Mapping[str, Sequence[Mapping[str, Any]]],
) -> dict[str, dict[str, float | int | None]]:
  """Returns for each training step its number of updates and the medians of the logged speeds."""
  rows = {}
  for name, lines in logs.items():
    rows[name] = {'updates': max((line['step'] for line in lines), default=0)}
    for key in _SPEEDS:
      values = [line[key] for line in lines if line.get(key) is not None]
      rows[name][key] = float(np.median(values)) if values else None
  return rows


def _png(image: Image.Image) -> bytes:
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', optimize=True)
  return buffer.getvalue()


def _require_file(path: pathlib.Path) -> None:
  if not path.is_file():
    raise errors.make(
      'report', f'no file {path}', 'the files of the earlier steps of the recipe', 'run them first'
    )


def _read_json(path: pathlib.Path) -> Any:
  _require_file(path)
  return json.loads(path.read_text())


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
  """Returns the lines of a JSONL file, without a last line that a killed run cut off."""
  _require_file(path)
  return files.read_jsonl(path, drop_partial=True)
