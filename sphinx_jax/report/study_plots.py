"""Figures of a study: differences with their intervals, and learning curves."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sphinx_jax.report.plots import AVERAGE_COLOR, BLIND_COLOR, FINAL_COLOR, smooth, styled


def differences(group: Mapping[str, Any]) -> Figure:
  """Plots the difference of every change to its baseline: the average over tasks and each task.

  Args:
    group: a group of `results.json`.
  """
  pairs = _measured(group)
  with styled():
    figure = Figure(figsize=(9, 0.5 * len(pairs) + 1.3), layout='constrained')
    axes = figure.subplots()
    for row, pair in enumerate(pairs):
      tasks = [task['difference'] for task in pair['tasks'].values()]
      axes.plot(tasks, np.full(len(tasks), row + 0.22), '|', ms=7, color=BLIND_COLOR, mew=1.5)
    _intervals(axes, pairs)
    kind = 'loss (lower is better)' if group['lower_is_better'] else 'score (higher is better)'
    axes.set_xlabel(f'difference of the {kind}; line: 95 %, dots: seeds, ticks: tasks')
  return figure


def overview(studies: Mapping[str, Mapping[str, Any]]) -> Figure:
  """Plots the differences of the average score in several studies, one panel each.

  Args:
    studies: {name of a study: its `results.json`}, with a group `evaluate`.
  """
  groups = {name: _measured(results['groups']['evaluate']) for name, results in studies.items()}
  rows = [len(pairs) for pairs in groups.values()]
  with styled():
    figure = Figure(figsize=(9, 0.28 * sum(rows) + 0.45 * len(rows) + 0.5), layout='constrained')
    panels = figure.subplots(len(rows), sharex=True, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (name, pairs) in zip(panels, groups.items(), strict=True):
      _intervals(axes, pairs)
      axes.set_title(studies[name]['title'], loc='left', fontsize=9)
    panels[-1].set_xlabel(
      'difference of the average score; line: 95 %, dots: seeds, blue: seen after correction'
    )
  return figure


def _measured(group: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  return [pair for pair in group['pairs'] if pair['mean']]


def _intervals(axes: Axes, pairs: Sequence[Mapping[str, Any]]) -> None:
  """Plots average differences with their intervals and those of each seed, a row for each pair."""
  for row, mean in enumerate(pair['mean'] for pair in pairs):
    for seed in mean['by_seed']:
      axes.plot(seed, row - 0.22, '.', ms=5, color=FINAL_COLOR, alpha=0.6)
    is_seen = mean['verdict'].startswith(('better', 'worse'))
    color = FINAL_COLOR if is_seen else AVERAGE_COLOR
    axes.plot([mean['low'], mean['high']], [row, row], lw=2, color=color)
    axes.plot(mean['difference'], row, 'o', ms=6, color=color, mfc=color if is_seen else 'white')
  axes.axvline(0, lw=1, color=AVERAGE_COLOR)
  axes.set_yticks(range(len(pairs)), [f'{p["change"]} - {p["baseline"]}' for p in pairs])
  axes.set_ylim(len(pairs) - 0.5, -0.5)
  axes.grid(False, axis='y')


def curves(step: str, losses: Mapping[str, Sequence[Sequence[float]]]) -> Figure:
  """Plots the training loss of one step for every change.

  Args:
    step: name of the step.
    losses: {change: [[update, loss]]}.
  """
  colors = matplotlib.colormaps['tab20' if len(losses) > 10 else 'tab10'].colors
  with styled():
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    axes = figure.subplots()
    for number, (change, points) in enumerate(losses.items()):
      updates, values = np.array(points, float).T
      axes.plot(updates, smooth(values), lw=1.4, color=colors[number % len(colors)], label=change)
    axes.set(title=step, xlabel='update', ylabel='loss per answer token')
    axes.legend(fontsize=7.5, ncols=2, loc='upper right')
  return figure
