"""The report's figures: loss per task, the mixing curve, bars of blind against trained. All return matplotlib Figures."""

import io
import math
import textwrap

import matplotlib
import numpy as np
from matplotlib.figure import Figure

BLIND, FINAL = '#b4bac4', '#2f6fde'
REAL, SYNTHETIC, AVERAGE = '#d9822b', '#2a9d6f', '#1f2733'
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
}


def to_png(figure, dpi=130) -> bytes:
  """A figure as PNG bytes."""
  buffer = io.BytesIO()
  figure.savefig(buffer, format='png', dpi=dpi, facecolor='white')
  return buffer.getvalue()


def loss_curves(steps) -> Figure:
  """Loss against step for every training step of a recipe, one panel each, one line a task.

  Args:
    steps: {recipe step: [{'step': int, 'loss': float, 'loss/<task>': float, ...}, ...]}; a task may be absent from a line.
  """
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(11, 3.9 if len(steps) > 1 else 4.4), layout='constrained')
    panels = np.atleast_1d(
      figure.subplots(
        1, max(len(steps), 1), width_ratios=[_lines_in(v) for v in steps.values()] or [1]
      )
    )
    for axes, (name, lines) in zip(panels, steps.items()):
      _loss_panel(axes, name, lines)
  return figure


def _lines_in(lines):
  return 1.6 if len({key for line in lines for key in line if key.startswith('loss/')}) > 4 else 1.0


def _loss_panel(axes, name, lines):
  keys = sorted({key for line in lines for key in line if key.startswith('loss/')})
  colours = matplotlib.colormaps['tab20' if len(keys) > 10 else 'tab10'].colors
  for number, key in enumerate(keys):
    x, y = _series(lines, key)
    axes.plot(
      x, smooth(y), lw=1.3, color=colours[number % len(colours)], label=key.removeprefix('loss/')
    )
  x, y = _series(lines, 'loss')
  axes.plot(x, y, lw=0.7, color=AVERAGE, alpha=0.25)
  axes.plot(x, smooth(y), lw=2.0, color=AVERAGE, label='all')
  axes.set(title=name, xlabel='step', ylabel='loss per answer token', ylim=(0, None))
  axes.legend(fontsize=7.5, ncols=2 if len(keys) > 5 else 1, loc='upper right')


def _series(lines, key):
  points = [(line['step'], line[key]) for line in lines if math.isfinite(line.get(key, math.nan))]
  return np.array(points, float).reshape(-1, 2).T


def smooth(values, share=0.04):
  """Running mean over a `share` of the series, centred; the ends average what there is."""
  width = max(int(len(values) * share), 1)
  kernel = np.ones(2 * width + 1)
  if len(values) <= len(kernel):
    return values
  return np.convolve(values, kernel, 'same') / np.convolve(np.ones(len(values)), kernel, 'same')


def mix_curve(points, chosen, axes=None) -> Figure | None:
  """Validation loss of both caption domains against the mixing coefficient.

  Args:
    points: [{'coefficient': float, 'real': float, 'synthetic': float}, ...]; coefficient is the share of the real parent.
    chosen: the coefficient that the recipe went on with.
    axes: where to draw; None makes a figure and returns it.
  """
  with matplotlib.rc_context(_STYLE):
    figure = None
    if axes is None:
      figure = Figure(figsize=(7.2, 3.9), layout='constrained')
      axes = figure.subplots()
    points = sorted(points, key=lambda point: point['coefficient'])
    x = np.array([point['coefficient'] for point in points])
    real, synthetic = (
      np.array([point[name] for point in points]) for name in ('real', 'synthetic')
    )
    average = (real + synthetic) / 2
    for y, colour, label in (
      (real, REAL, 'real captions'),
      (synthetic, SYNTHETIC, 'synthetic captions'),
    ):
      axes.plot(x, y, '-o', ms=3.5, lw=1.5, color=colour, label=label)
    axes.plot(x, average, '-o', ms=4, lw=2.2, color=AVERAGE, label='average')
    axes.plot(
      x[[0, -1]],
      average[[0, -1]],
      's',
      ms=9,
      mfc='white',
      mec=AVERAGE,
      mew=1.8,
      label='parents',
      zorder=3,
    )
    nearest = np.argmin(np.abs(x - chosen))
    axes.plot(
      x[nearest], average[nearest], '*', ms=15, color='#e6194b', label=f'used: {chosen:g}', zorder=4
    )
    axes.set(
      xlabel='b in W = b W_real + (1 − b) W_synthetic', ylabel='validation loss', title='Weight mix'
    )
    axes.set_ylim(
      top=axes.get_ylim()[1] + 0.28 * np.ptp(axes.get_ylim())
    )  # room for the legend above the curves
    axes.legend(fontsize=8, loc='upper center', ncols=3)
  return figure


def line_between(points, names) -> Figure:
  """Losses, and scores of tasks where there are some, along the line between two checkpoints.

  Args:
    points: [{'coefficient': float, '<validation set>': loss, 'task/<task>': score, ...}, ...].
    names: of the checkpoints; the coefficient is the share of the first.
  """
  keys = [key for key in points[0] if key != 'coefficient']
  scores = [key for key in keys if key.startswith('task/')]
  panels = [
    (title, group)
    for title, group in (
      ('validation loss', [key for key in keys if key not in scores]),
      ('score', scores),
    )
    if group
  ]
  points = sorted(points, key=lambda point: point['coefficient'])
  x = [point['coefficient'] for point in points]
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(7.2, 3.9 * len(panels)), layout='constrained')
    for axes, (title, group) in zip(np.atleast_1d(figure.subplots(len(panels), 1)), panels):
      for key in group:
        axes.plot(
          x, [point[key] for point in points], '-o', ms=3.5, lw=1.5, label=key.removeprefix('task/')
        )
      if len(group) > 1:
        axes.plot(
          x,
          [np.mean([point[key] for key in group]) for point in points],
          '-o',
          ms=4,
          lw=2.2,
          color=AVERAGE,
          label='average',
        )
      axes.set(ylabel=title, xlabel='share of the first')
      axes.legend(fontsize=8)
    figure.suptitle(
      '\n'.join(
        f'{place}: {textwrap.shorten(str(name), 90)}'
        for place, name in zip(('first', 'second'), names)
      ),
      fontsize=9,
    )
  return figure


def score_bars(tasks, axes=None) -> Figure | None:
  """Horizontal bars of every task: blind floor, trained model, its 95 % interval; `tasks` as in metrics.json."""
  with matplotlib.rc_context(_STYLE):
    figure = None
    if axes is None:
      figure = Figure(figsize=(7.2, 0.42 * len(tasks) + 1), layout='constrained')
      axes = figure.subplots()
    y = np.arange(len(tasks))
    final = np.array([task['final'] for task in tasks.values()])
    spread = np.clip(
      [final - [t['low'] for t in tasks.values()], [t['high'] for t in tasks.values()] - final],
      0,
      None,
    )
    axes.barh(
      y - 0.19,
      final,
      0.38,
      color=FINAL,
      label='stage 2',
      xerr=spread,
      error_kw={'lw': 1.1, 'ecolor': '#16336b'},
    )
    axes.barh(
      y + 0.19,
      [task['blind'] for task in tasks.values()],
      0.38,
      color=BLIND,
      label='blind (mean image)',
    )
    axes.set_yticks(y, [name.replace('_', ' ') for name in tasks])
    axes.invert_yaxis()
    axes.set(xlim=(0, 1))
    axes.set_title('Held-out score', loc='left')
    axes.grid(False, axis='y')
    axes.legend(fontsize=8, loc='lower right', bbox_to_anchor=(1, 1), ncols=2, borderaxespad=0)
  return figure


def overview(tasks, points, chosen, samples) -> Figure:
  """One picture of a finished recipe, for a README.

  Args:
    tasks: as in metrics.json.
    points, chosen: as in `mix_curve`; without points the curve is left out.
    samples: [(task, question, answer, picture uint8[Y, X, 3]), ...], at most ten are shown.
  """
  with matplotlib.rc_context(_STYLE):
    figure = Figure(figsize=(15, 7.4), layout='constrained')
    left, right = figure.subfigures(1, 2, width_ratios=[1, 1.9], wspace=0.02)
    panels = np.atleast_1d(
      left.subplots(2 if points else 1, 1, height_ratios=[1.55, 1] if points else [1])
    )
    score_bars(tasks, panels[0])
    if points:
      mix_curve(points, chosen, panels[1])
    columns = min(max(math.ceil(len(samples) / 2), 1), 5)
    for axes in (grid := np.atleast_1d(right.subplots(2, columns)).ravel()):
      axes.axis('off')
    for axes, (task, question, answer, picture) in zip(grid, samples):
      axes.imshow(picture)
      axes.set_title(task.replace('_', ' '), fontsize=10)
      text = '\n'.join([*wrap(question, 30, 3), '→ ' + '\n   '.join(wrap(answer, 28, 2))])
      axes.text(0, -0.03, text, transform=axes.transAxes, va='top', fontsize=7.5, color='#2b313b')
  return figure


def wrap(text, width, lines) -> list[str]:
  """Text broken into at most `lines` lines of `width` characters, with an ellipsis where it was cut."""
  return textwrap.wrap(text, width, max_lines=lines, placeholder=' …') or ['']
