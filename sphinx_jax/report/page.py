"""The report of a finished recipe: one self-contained HTML page, its PNGs beside it, and `metrics.json`.

    write(workdir, evaluation=..., metrics=..., curve=..., seconds=..., peak_rss_bytes=..., config=...) -> report.html

reads only files that the steps left behind, so a page can be written again at any time:

    evaluation   folder of `evaluate.tasks.evaluate`: results.json, <task>.final.jsonl, images/
    metrics      {recipe step: metrics.jsonl}, lines {"step": int, "loss": float, "loss/<task>": float, ...}
    curve        [{"coefficient", "real", "synthetic"}] or a JSON file of it; the coefficient is the real parent's share

It writes into `workdir`: report.html, metrics.json, report/{scores,loss,mix_curve,overview}.png, report/samples/*.png.
"""

import base64
import io
import json
import pathlib

import jinja2
import numpy as np
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.report import draw, plots

_SAMPLES = 4  # pictures a task
_SPEEDS = {  # what training logs, and how the page calls it
  'examples_per_second': 'examples / s',
  'tokens_per_second': 'tokens / s',
  'useful_share': 'useful positions',
  'data_wait_share': 'waiting for data',
}


def write(
  workdir,
  *,
  evaluation,
  metrics,
  curve,
  seconds,
  peak_rss_bytes,
  config,
  mixed=0.5,
  targets=None,
  title='SPHINX, the joint-mixing recipe',
):
  """Writes the page, its pictures and metrics.json.

  Args:
    workdir: where to write.
    evaluation: path, see above.
    metrics: {str: path}, see above, in the order of the recipe.
    curve: see above; empty when the recipe mixes no weights.
    seconds: {recipe step: wall-clock seconds}.
    peak_rss_bytes: most host memory that the recipe used.
    config: the resolved config as a plain dict.
    mixed: the coefficient of the real parent that the recipe went on with.
    targets: {task: the score to reach}.
    title: of the page.

  Returns:
    Path of report.html.

  Raises:
    SphinxError: a file that the page is made of is missing.
  """
  workdir, evaluation = pathlib.Path(workdir), pathlib.Path(evaluation)
  pictures = workdir / 'report'
  (pictures / 'samples').mkdir(parents=True, exist_ok=True)
  results = _json(evaluation / 'results.json')
  curve = curve if isinstance(curve, (list, tuple)) else _json(pathlib.Path(curve))
  logs = {name: _lines(pathlib.Path(path)) for name, path in metrics.items()}
  samples = {task: _samples(evaluation, task, pictures / 'samples') for task in results}
  fields = ('metric', 'blind', 'final', 'low', 'high', 'examples')
  numbers = {
    'tasks': {task: {field: result[field] for field in fields} for task, result in results.items()},
    'mix_curve': [
      {key: point[key] for key in ('coefficient', 'real', 'synthetic')} for point in curve
    ],
    'seconds': dict(seconds),
    'peak_rss_bytes': int(peak_rss_bytes),
  }
  (workdir / 'metrics.json').write_text(json.dumps(numbers, indent=2))
  figures = {'scores': plots.score_bars(results), 'loss': plots.loss_curves(logs)}
  if curve:
    figures['mix_curve'] = plots.mix_curve(curve, mixed)
  figures['overview'] = plots.overview(results, curve, mixed, _highlights(samples))
  images = {name: plots.to_png(figure) for name, figure in figures.items()}
  for name, png in images.items():
    (pictures / f'{name}.png').write_bytes(png)
  page = template('template.html').render(
    title=title,
    tasks=_task_rows(results, targets or {}),
    images={name: _inline(png) for name, png in images.items()},
    curve=curve_verdict(curve, mixed) if curve else None,
    samples=samples,
    speeds=_speeds(logs),
    speed_names=_SPEEDS,
    seconds=seconds,
    total=sum(seconds.values()),
    peak=peak_rss_bytes / 2**30,
    config=json.dumps(config, indent=2),
    model=config.get('model'),
  )
  (workdir / 'report.html').write_text(page)
  return workdir / 'report.html'


def curve_verdict(curve, mixed) -> dict:
  """What the mixing curve says of the coefficient that was used.

  Returns:
    {'mixed': float, 'parents': {'real': float, 'synthetic': float}, 'best': coefficient, 'ok': bool}; losses averaged over
    both domains, ok when the mix is no worse than the better parent.
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


def _task_rows(results, targets):
  return [
    {
      'name': task,
      **result,
      'beats': result['low'] > result.get('blind_high', result['blind']),
      'target': targets.get(task),
      'reached': task in targets and result['final'] >= targets[task],
    }
    for task, result in results.items()
  ]


def _samples(evaluation, task, folder):
  """The first questions of a task that have a picture, drawn: dicts for the template."""
  shown = []
  for entry in (entry for entry in _lines(evaluation / f'{task}.final.jsonl') if 'image' in entry):
    picture = np.asarray(Image.open(evaluation / entry['image']).convert('RGB'))
    panels = {'': entry['instruction']}
    if draw.is_drawable(entry['answer']):
      panels = {'prediction': entry['prediction'], 'truth': entry['answer']}
    drawn = {}
    for name, answer in panels.items():
      shown_answer = answer if name else ''
      png = _png(draw.draw(picture, shown_answer, asked=entry['instruction']))
      (folder / f'{task}-{len(shown)}{"-" + name if name else ""}.png').write_bytes(png)
      drawn[name] = png
    shown.append(
      {
        **{key: entry[key] for key in ('id', 'instruction', 'prediction', 'answer')},
        'panels': {k: _inline(v) for k, v in drawn.items()},
        'first': next(iter(drawn.values())),
        'score': f'{entry["numerator"]:g} / {entry["denominator"]:g}',
        'right': entry['numerator'] >= 0.5 * entry['denominator'] and entry['denominator'] > 0,
      }
    )
    if len(shown) == _SAMPLES:
      break
  return shown


def _highlights(samples):
  """One picture a task for the overview: its first sample that is right, or else its first."""
  chosen = []
  for task, shown in samples.items():
    if shown:
      sample = next((sample for sample in shown if sample['right']), shown[0])
      chosen.append(
        (
          task,
          sample['instruction'],
          sample['prediction'],
          np.asarray(Image.open(io.BytesIO(sample['first']))),
        )
      )
  return chosen[:10]


def _speeds(logs):
  """For each training step of the recipe its updates and the medians of what was logged."""
  rows = {}
  for name, lines in logs.items():
    medians = {
      key: float(np.median(values))
      if (values := [line[key] for line in lines if line.get(key) is not None])
      else None
      for key in _SPEEDS
    }
    rows[name] = {'updates': max((line['step'] for line in lines), default=0), **medians}
  return rows


def template(name) -> jinja2.Template:
  """A page's template, by its file beside this one."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('sphinx_jax.report', ''),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template(name)


def _png(image):
  buffer = io.BytesIO()
  image.save(buffer, 'PNG', optimize=True)
  return buffer.getvalue()


def _inline(png):
  return 'data:image/png;base64,' + base64.b64encode(png).decode()


def _read(file):
  if not file.is_file():
    raise errors.make(
      'report', f'no file {file}', 'what the earlier steps of the recipe leave', 'run them first'
    )
  return file.read_text()


def _json(file):
  return json.loads(_read(file))


def _lines(file):
  """A JSON-lines file; a last line that a killed run left unfinished is dropped."""
  texts = [text for text in _read(file).split('\n')[:-1] if text]
  return [json.loads(text) for text in texts]
