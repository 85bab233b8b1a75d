import math

import numpy as np
import pytest

from sphinx_jax.report import plots
from tests.report import texts

CURVE = [{'coefficient': c, 'real': 2 - c, 'synthetic': 1 + c} for c in (0.0, 0.5, 1.0)]


def test_every_task_has_a_line_without_missing_points():
  lines = [
    {'step': 1, 'loss': 3.0, 'loss/vqa': 2.0},
    {'step': 2, 'validation/real': 1.0},
    {'step': 3, 'loss': 2.0, 'loss/vqa': math.nan},
  ]
  figure = plots.loss_curves({'real': lines, 'stage2': []})
  panel, empty = figure.axes
  assert [text.get_text() for text in panel.get_legend().get_texts()] == ['vqa', 'all']
  assert [list(line.get_xdata()) for line in panel.lines] == [[1], [1, 3], [1, 3]] and len(
    empty.lines
  ) == 2


def test_smoothing_keeps_constants_and_length():
  np.testing.assert_allclose(plots.smooth(np.full(100, 3.0)), 3)
  assert plots.smooth(np.arange(200.0)).shape == (200,) and list(plots.smooth(np.arange(3.0))) == [
    0,
    1,
    2,
  ]


def test_the_average_of_the_curve_and_the_used_point_are_drawn():
  axes = plots.mix_curve(CURVE[::-1], 0.5).axes[0]
  drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
  assert drawn['average'] == [[0, 1.5], [0.5, 1.5], [1, 1.5]]
  assert drawn['parents'] == [[0, 1.5], [1, 1.5]] and drawn['used: 0.5'] == [[0.5, 1.5]]


def test_losses_and_scores_between_two_checkpoints_have_a_panel_each():
  points = [
    {'coefficient': c, 'real': 2 - c, 'synthetic': 1 + c, 'task/vqa': c / 2} for c in (1.0, 0.0)
  ]
  losses, scores = plots.line_between(points, ['a', 'b']).axes
  assert {line.get_label(): line.get_xydata().tolist() for line in losses.lines} == {
    'real': [[0, 2], [1, 1]],
    'synthetic': [[0, 1], [1, 2]],
    'average': [[0, 1.5], [1, 1.5]],
  }
  assert {line.get_label(): line.get_xydata().tolist() for line in scores.lines} == {
    'vqa': [[0, 0], [1, 0.5]]
  }


def test_a_triangle_marks_the_best_mix_of_each_panel():
  rows = [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0.5, 0.5, 0)]
  points = [
    {'coefficients': list(row), 'real': 3 - row[0], 'synthetic': 1 + row[0], 'task/vqa': row[1]}
    for row in rows
  ]
  figure = plots.triangle_between(points, ['a', 'b', 'c'])
  panels = {axes.get_title(): axes for axes in figure.axes if axes.get_title()}
  assert list(panels) == ['validation loss, average', 'real', 'synthetic', 'score']
  best = {name: axes.lines[-1].get_xydata()[0].tolist() for name, axes in panels.items()}
  assert best['real'] == pytest.approx([0.5, math.sqrt(3) / 2])  # The first input is on top.
  assert best['score'] == [0, 0]
  assert panels['real'].get_legend().get_texts()[0].get_text() == 'best: 2'


def test_bars_show_how_each_group_changes_the_loss():
  result = {
    'inputs': ['a', 'b'],
    'uniform': {'real': 1.0, 'synthetic': 2.0},
    'groups': [
      {'group': group, 'input': number, 'change': {'real': change, 'synthetic': 0.0}}
      for group, number, change in (
        ('llm/.*', 0, 0.2), ('llm/.*', 1, -0.4), ('.*', 0, 0.0), ('.*', 1, 0.6),
      )
    ],
  }  # fmt: skip
  (axes,) = plots.sensitivity(result).axes
  assert [label.get_text() for label in axes.get_yticklabels()] == ['llm/.*', '.*']
  assert [bar.get_width() for bar in axes.patches] == [0.1, 0.0, -0.2, 0.3]
  assert 'from 1.5' in axes.get_xlabel()


def test_bars_show_the_blind_and_the_final_score():
  tasks = {
    'vqa': {'final': 0.8, 'low': 0.7, 'high': 0.85, 'blind': 0.3},
    'rec': {'final': 0.5, 'low': 0.5, 'high': 0.5, 'blind': 0.1},
  }
  axes = plots.score_bars(tasks).axes[0]
  assert sorted(bar.get_width() for bar in axes.patches) == [0.1, 0.3, 0.5, 0.8]


def test_wrapping_marks_a_cut_with_an_ellipsis():
  assert plots.wrap('one two three four', 9, 1) == ['one two …']
  assert plots.wrap('', 9, 2) == ['']


def test_a_figure_becomes_a_png():
  assert plots.to_png(plots.mix_curve(CURVE, 0.5), dpi=20).startswith(b'\x89PNG')


@pytest.mark.filterwarnings('ignore:Glyph', 'ignore:constrained_layout')
def test_any_name_and_text_is_drawn():
  """All hostile texts are names of one figure of each kind, which is then rendered."""
  names = [name for name in texts.HOSTILE.values() if name.strip('_ ')]
  lines = [{'step': s, 'loss': 2.0, **{f'loss/{name}': 1.0 for name in names}} for s in (1, 2)]
  scores = {'final': 0.5, 'low': 0.4, 'high': 0.6, 'blind': 0.1}
  image = np.zeros((4, 4, 3), np.uint8)
  points = [{'coefficient': c, **{f'task/{name}': c for name in names}} for c in (0, 1)]
  samples = [(name, name, name, image) for name in names]
  moved = [{'group': name, 'input': i, 'change': {'a': 0.1}} for name in names for i in (0, 1)]
  figures = [
    plots.loss_curves({names[i]: lines for i in (0, -1)}),
    plots.line_between(points, [texts.HOSTILE['formula'], texts.HOSTILE['surrogate']]),
    plots.score_bars({name: scores for name in names}),
    plots.overview({}, CURVE, 0.5, samples[::2]),
    plots.sensitivity({'inputs': names[:2], 'uniform': {'a': 1.0}, 'groups': moved}),
  ]
  for figure in figures:
    assert plots.to_png(figure, dpi=20).startswith(b'\x89PNG')
