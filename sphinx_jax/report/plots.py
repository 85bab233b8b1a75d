"""Figures of the report: losses, the curve of weight mixes, scores with and without images."""

import contextlib
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sphinx_jax.core.text import one_line, printable

BLIND_COLOR, FINAL_COLOR = '#b4bac4', '#2f6fde'
REAL_COLOR, SYNTHETIC_COLOR, AVERAGE_COLOR = '#d9822b', '#2a9d6f', '#1f2733'
_CHOSEN_COLOR, _INTERVAL_COLOR, _TEXT_COLOR = '#e6194b', '#16336b', '#2b313b'
_STYLE = {
  'font.size': 9.5,
  'axes.spines.top': False,
  'axes.spines.right': False,
  'axes.edgecolor': '#8a93a1',
  'axes.grid': True,
  'grid.color': '#e7eaee',
  'axes.axisbelow': True,
  'axes.titleweight': 'bold',
  'axes.titlesize': 10.5,
  'xtick.color': '#49505c',
  'ytick.color': '#49505c',
  'legend.frameon': False,
  'text.parse_math': False,  # Names and answers are no formulas, whatever '$' they have.
}

Lines = Sequence[Mapping[str, Any]]  # Lines of a metrics.jsonl.
Points = Sequence[Mapping[str, float]]  # Points of a curve of weight mixes.
Results = Mapping[str, Mapping[str, Any]]  # Task -> its scores, as in metrics.json.


def styled() -> contextlib.AbstractContextManager:
  """The context in which figures have the look of the reports."""
  return matplotlib.rc_context(_STYLE)


def to_png(figure: Figure, dpi: int = 130) -> bytes:
  """Returns a figure as a PNG file."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi, facecolor='white')
  return buffer.getvalue()


def loss_curves(steps: Mapping[str, Lines], ylabel: str = 'loss per answer token') -> Figure:
  """Plots loss against step: one panel for each training step of a recipe, one line per task.

  Args:
    steps: {step of the recipe: [{'step': int, 'loss': float, 'loss/<task>': float, ...}, ...]}. A
      line may lack a task.
    ylabel: what the losses are.
  """
  with matplotlib.rc_context(_STYLE):
    height = 3.9 if len(steps) > 1 else 4.4
    figure = Figure(figsize=(11, height), layout='constrained')
    # A panel with many tasks is wider.
    widths = [1.6 if len(_task_keys(lines)) > 4 else 1.0 for lines in steps.values()] or [1]
    panels = np.atleast_1d(figure.subplots(1, len(widths), width_ratios=widths))
    for axes, (name, lines) in zip(panels, steps.items()):
      _loss_panel(axes, name, lines, ylabel)
  return figure


def _task_keys(lines: Lines) -> list[str]:
  """Returns the keys of the losses of single tasks, sorted."""
  return sorted({key for line in lines for key in line if key.startswith('loss/')})


def _loss_panel(axes: Axes, name: str, lines: Lines, ylabel: str) -> None:
  keys = _task_keys(lines)
  colors = matplotlib.colormaps['tab20' if len(keys) > 10 else 'tab10'].colors
  for number, key in enumerate(keys):
    x, y = _series(lines, key)
    color, label = colors[number % len(colors)], _name(key.removeprefix('loss/'))
    axes.plot(x, smooth(y), lw=1.3, color=color, label=label)
  x, y = _series(lines, 'loss')
  axes.plot(x, y, lw=0.7, color=AVERAGE_COLOR, alpha=0.25)
  axes.plot(x, smooth(y), lw=2.0, color=AVERAGE_COLOR, label='all')
  axes.set(title=_name(name), xlabel='step', ylabel=ylabel, ylim=(0, None))
  axes.legend(fontsize=7.5, ncols=2 if len(keys) > 5 else 1, loc='upper right')


def _series(lines: Lines, key: str) -> np.ndarray:
  """Returns steps and finite values of a key, float64[2,points]."""
  points = [(line['step'], line[key]) for line in lines if math.isfinite(line.get(key, math.nan))]
  return np.array(points, float).reshape(-1, 2).T


def smooth(values: np.ndarray, share: float = 0.04) -> np.ndarray:
  """Returns a centered running mean. At the ends it averages the values that exist.

  Args:
    values: float[points].
    share: half the width of the window, as a share of the series.
  """
  half = max(int(len(values) * share), 1)
  kernel = np.ones(2 * half + 1)
  if len(values) <= len(kernel):
    return values
  counts = np.convolve(np.ones(len(values)), kernel, 'same')
  return np.convolve(values, kernel, 'same') / counts


def mix_curve(points: Points, chosen: float, axes: Axes | None = None) -> Figure | None:
  """Plots the validation loss of both caption domains against the mixing coefficient.

  Args:
    points: [{'coefficient', 'real', 'synthetic'}, ...]. The coefficient is the share of the real
      parent.
    chosen: the coefficient with which the recipe continued.
    axes: where to draw, or None to make a figure and return it.
  """
  with matplotlib.rc_context(_STYLE):
    figure = None
    if axes is None:
      figure = Figure(figsize=(7.2, 3.9), layout='constrained')
      axes = figure.subplots()
    points = sorted(points, key=lambda point: point['coefficient'])
    x = np.array([point['coefficient'] for point in points])
    real = np.array([point['real'] for point in points])
    synthetic = np.array([point['synthetic'] for point in points])
    average = (real + synthetic) / 2
    axes.plot(x, real, '-o', ms=3.5, lw=1.5, color=REAL_COLOR, label='real captions')
    axes.plot(x, synthetic, '-o', ms=3.5, lw=1.5, color=SYNTHETIC_COLOR, label='synthetic captions')
    axes.plot(x, average, '-o', ms=4, lw=2.2, color=AVERAGE_COLOR, label='average')
    ends = [0, -1]
    axes.plot(
      x[ends],
      average[ends],
      's',
      ms=9,
      mfc='white',
      mec=AVERAGE_COLOR,
      mew=1.8,
      label='parents',
      zorder=3,
    )
    nearest = np.argmin(np.abs(x - chosen))
    axes.plot(
      x[nearest],
      average[nearest],
      '*',
      ms=15,
      color=_CHOSEN_COLOR,
      label=f'used: {chosen:g}',
      zorder=4,
    )
    axes.set(
      xlabel='b in W = b W_real + (1 − b) W_synthetic', ylabel='validation loss', title='Weight mix'
    )
    bottom, top = axes.get_ylim()
    axes.set_ylim(top=top + 0.28 * (top - bottom))  # The legend is above the curves.
    axes.legend(fontsize=8, loc='upper center', ncols=3)
  return figure


def line_between(points: Points, names: Sequence[str]) -> Figure:
  """Plots losses, and scores of tasks if there are any, along the line between two checkpoints.

  Args:
    points: [{'coefficient': float, '<validation set>': loss, 'task/<task>': score, ...}, ...].
    names: names of the two checkpoints. The coefficient is the share of the first.
  """
  panels = _kinds(points[0], 'coefficient')
  points = sorted(points, key=lambda point: point['coefficient'])
  x = [point['coefficient'] for point in points]
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(7.2, 3.9 * len(panels)), layout='constrained')
    for axes, (title, group) in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels.items()):
      for key in group:
        y = [point[key] for point in points]
        axes.plot(x, y, '-o', ms=3.5, lw=1.5, label=_name(key.removeprefix('task/')))
      if len(group) > 1:
        average = [np.mean([point[key] for key in group]) for point in points]
        axes.plot(x, average, '-o', ms=4, lw=2.2, color=AVERAGE_COLOR, label='average')
      axes.set(ylabel=title, xlabel='share of the first')
      axes.legend(fontsize=8)
    titles = [
      f'{place}: {one_line(str(name), 90)}' for place, name in zip(('first', 'second'), names)
    ]
    figure.suptitle('\n'.join(titles), fontsize=9)
  return figure


def triangle_between(points: Points, names: Sequence[str]) -> Figure:
  """Plots losses, and scores of tasks if there are any, in the triangle of three checkpoints.

  There is a panel for the average, and one for each loss or score if these are at most three.

  Args:
    points: [{'coefficients': three floats, '<validation set>': loss, 'task/<task>': score, ...},
      ...].
    names: names of the three checkpoints.
  """
  panels = []
  for kind, keys in _kinds(points[0], 'coefficients').items():
    values = {key: np.array([point[key] for point in points]) for key in keys}
    title = kind if len(keys) == 1 else f'{kind}, average'
    panels.append((title, kind, np.mean(list(values.values()), axis=0)))
    if 1 < len(keys) <= 3:
      panels += [(_name(key.removeprefix('task/')), kind, values[key]) for key in keys]
  corners = np.array([(0.5, math.sqrt(3) / 2), (0, 0), (1, 0)])
  places = np.array([point['coefficients'] for point in points]) @ corners
  rows = math.ceil(len(panels) / 3)
  columns = min(len(panels), 3)
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(4.6 * columns + 0.6, 4.2 * rows + 0.9), layout='constrained')
    cells = np.atleast_1d(figure.subplots(rows, columns)).ravel()
    for axes in cells:
      axes.axis('off')
      axes.set_aspect('equal')
    for axes, (title, kind, values) in zip(cells, panels):
      _triangle_panel(figure, axes, places, values, kind == 'score')
      for place, label, align in zip(
        corners, ('first', 'second', 'third'), ('bottom', 'top', 'top')
      ):
        axes.annotate(
          label,
          place,
          (0, 6 if align == 'bottom' else -6),
          textcoords='offset points',
          ha='center',
          va=align,
          color=_TEXT_COLOR,
        )
      axes.set_title(title, pad=22)
    titles = [
      f'{place}: {one_line(str(name), 90)}'
      for place, name in zip(('first', 'second', 'third'), names)
    ]
    figure.suptitle('\n'.join(titles), fontsize=9)
  return figure


def _triangle_panel(
  figure: Figure, axes: Axes, places: np.ndarray, values: np.ndarray, is_score: bool
) -> None:
  """Draws one value over the triangle, with contours and a star at the best mix."""
  colors = 'viridis' if is_score else 'viridis_r'  # Yellow is good.
  if np.ptp(values) > 0:
    drawn = axes.tricontourf(*places.T, values, levels=14, cmap=colors)
    axes.tricontour(*places.T, values, levels=7, colors='white', linewidths=0.5)
    figure.colorbar(drawn, ax=axes, shrink=0.75)
  axes.plot(*places.T, '.', ms=3, color=AVERAGE_COLOR, clip_on=False)
  best = int(values.argmax() if is_score else values.argmin())
  axes.plot(
    *places[best], '*', ms=15, color=_CHOSEN_COLOR, label=f'best: {values[best]:.4g}', clip_on=False
  )
  axes.legend(fontsize=8, loc='upper left', bbox_to_anchor=(-0.05, 1))


def sensitivity(result: Mapping[str, Any]) -> Figure:
  """Plots how losses and scores change if one group of parameters is wholly from one input.

  Args:
    result: content of sensitivity.json, see `mix_curve.draw_sensitivity`. The average of the
      validation losses is shown, and that of the scores.
  """
  groups = list(dict.fromkeys(entry['group'] for entry in result['groups']))
  names = result['inputs']
  panels = _kinds(result['uniform'])
  colors = matplotlib.colormaps['tab10'].colors
  y, height = np.arange(len(groups)), 0.8 / len(names)
  with matplotlib.rc_context(_STYLE):
    size = (2.6 + 4.4 * len(panels), (0.24 * len(names) + 0.12) * len(groups) + 1.4)
    figure = Figure(figsize=size, layout='constrained')
    row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (kind, keys) in zip(row, panels.items()):
      for number, name in enumerate(names):
        changes = [
          np.mean([entry['change'][key] for key in keys])
          for entry in result['groups']
          if entry['input'] == number
        ]
        axes.barh(
          y + (number - (len(names) - 1) / 2) * height,
          changes,
          height,
          color=colors[number % len(colors)],
          label=f'all from {one_line(name, 60)}',
        )
      uniform = np.mean([result['uniform'][key] for key in keys])
      better = 'less is better' if kind == 'validation loss' else 'more is better'
      axes.axvline(0, lw=1, color=AVERAGE_COLOR)
      axes.set(xlabel=f'change of {kind} from {uniform:.4g} ({better})')
      axes.grid(False, axis='y')
    row[0].set_yticks(y, [_name(group) for group in groups])
    row[0].invert_yaxis()
    figure.legend(*row[0].get_legend_handles_labels(), fontsize=8, loc='outside upper left')
  return figure


def _kinds(values: Mapping[str, Any], *others: str) -> dict[str, list[str]]:
  """Returns 'validation loss' and 'score' -> keys, without a kind that has none or other keys."""
  kinds: dict[str, list[str]] = {'validation loss': [], 'score': []}
  for key in values:
    if key not in others:
      kinds['score' if key.startswith('task/') else 'validation loss'].append(key)
  return {kind: keys for kind, keys in kinds.items() if keys}


def score_bars(tasks: Results, axes: Axes | None = None) -> Figure | None:
  """Plots horizontal bars of every task: the blind score, the score and its 95 % interval.

  Args:
    tasks: as in metrics.json.
    axes: where to draw, or None to make a figure and return it.
  """
  with matplotlib.rc_context(_STYLE):
    figure = None
    if axes is None:
      figure = Figure(figsize=(7.2, 0.42 * len(tasks) + 1), layout='constrained')
      axes = figure.subplots()
    y = np.arange(len(tasks))
    final, low, high, blind = (
      np.array([task[field] for task in tasks.values()])
      for field in ('final', 'low', 'high', 'blind')
    )
    axes.barh(
      y - 0.19,
      final,
      0.38,
      color=FINAL_COLOR,
      label='stage 2',
      xerr=np.clip([final - low, high - final], 0, None),
      error_kw={'lw': 1.1, 'ecolor': _INTERVAL_COLOR},
    )
    axes.barh(y + 0.19, blind, 0.38, color=BLIND_COLOR, label='blind (mean image)')
    axes.set_yticks(y, [_name(name.replace('_', ' ')) for name in tasks])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1))
    axes.set_title('Held-out score', loc='left')
    axes.grid(False, axis='y')
    axes.legend(fontsize=8, loc='lower right', bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
  return figure


def overview(
  tasks: Results,
  points: Points,
  chosen: float,
  samples: Sequence[tuple[str, str, str, np.ndarray]],
) -> Figure:
  """Returns one figure of a finished recipe, for a README.

  Args:
    tasks: as in metrics.json.
    points: see `mix_curve`. Without points the curve is left out.
    chosen: see `mix_curve`.
    samples: [(task, question, answer, image uint8[Y,X,3]), ...]. At most ten are shown.
  """
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(15, 7.4), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.9], wspace=0.02)
    ratios = [1.55, 1] if points else [1]
    panels = np.atleast_1d(left.subplots(len(ratios), 1, height_ratios=ratios))
    score_bars(tasks, panels[0])
    if points:
      mix_curve(points, chosen, panels[1])
    columns = min(max(math.ceil(len(samples) / 2), 1), 5)
    cells = np.atleast_1d(right.subplots(2, columns)).ravel()
    for axes in cells:
      axes.axis('off')
    for axes, (task, question, answer, image) in zip(cells, samples):
      axes.imshow(image)
      axes.set_title(_name(task.replace('_', ' ')), fontsize=10)
      text = '\n'.join([*wrap(question, 30, 3), '→ ' + '\n   '.join(wrap(answer, 28, 2))])
      axes.text(0, -0.03, text, transform=axes.transAxes, va='top', fontsize=7.5, color=_TEXT_COLOR)
  return figure


def wrap(text: str, width: int, lines: int) -> list[str]:
  """Breaks text into at most `lines` lines of `width` characters. An ellipsis marks a cut."""
  return textwrap.wrap(printable(text), width, max_lines=lines, placeholder=' …') or ['']


def _name(name: str) -> str:
  """Returns a name as a label. Matplotlib hides labels that begin with an underscore."""
  return one_line(name.lstrip('_'), 40)
