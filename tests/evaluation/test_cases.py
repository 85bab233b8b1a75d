import json

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core import coordinates
from sphinx_jax.evaluation import cases
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question, open_benchmark
from tests.evaluation import questions


def entries(benchmark, answers):
  return [
    {**question.entry, 'id': question.id, 'answer': answer}
    for question, answer in zip(benchmark.questions, answers)
  ]


def write(folder, benchmark, answers, **more):
  cases.write(
    folder,
    benchmark,
    entries(benchmark, answers) if isinstance(answers[0], str) else answers,
    **more,
  )
  return json.loads((folder / 'cases' / f'{benchmark.name}.json').read_text())


@pytest.fixture
def benchmark(tmp_path):
  return open_benchmark('colors', questions.SETTINGS, questions.write(tmp_path / 'root'))


def test_best_and_worst_are_the_first_right_and_wrong_ones(benchmark, tmp_path):
  result = write(
    tmp_path, benchmark, ['blue', 'blue', 'red', 'red', 'red', 'red', 'blue', 'red', 'blue', 'red']
  )
  assert [[case['id'] for case in result[group]] for group in ('best', 'worst')] == [
    ['0', '3', '5'],
    ['1', '2', '4'],
  ]
  assert result['worst'][0] | {'prompt': ''} == {
    'id': '1',
    'prompt': '',
    'answer': 'blue',
    'truth': 'red',
    'score': 0.0,
    'image': 'cases/colors-worst-0.jpg',
  }
  kept = np.asarray(Image.open(tmp_path / 'cases' / 'colors-worst-0.jpg'))
  assert kept.mean((0, 1)) == pytest.approx(questions.COLORS['red'], abs=6)


def test_few_answers_are_not_shown_twice_and_skipped_ones_not_at_all(benchmark, tmp_path):
  lines = entries(benchmark, ['blue', '', 'blue'])
  lines[1]['skipped'] = 'missing image'
  result = write(tmp_path, benchmark, lines)
  assert [[case['id'] for case in result[group]] for group in ('best', 'worst')] == [['0', '2'], []]


def test_cases_are_about_different_images(benchmark, tmp_path):
  shared = [
    Question(q.id, (b'not an image',) if int(q.id) < 8 else q.images, q.prompt, q.entry)
    for q in benchmark.questions
  ]
  result = write(
    tmp_path, Benchmark('colors', shared, '', 5, 'accuracy', False, {}), ['blue', 'red'] * 5
  )
  assert [case['id'] for case in result['best']] == ['0', '8', '9'] and result['best'][0][
    'image'
  ] is None


def test_with_a_hidden_truth_the_first_answers_are_shown(benchmark, tmp_path):
  without_truth = [Question(q.id, q.images, q.prompt, {}) for q in benchmark.questions]
  hidden = Benchmark('colors', without_truth, '', 5, 'vqa_score', True, {})
  result = write(tmp_path, hidden, ['blue'] * 10)
  assert {
    group: [(case['id'], case['score'], case['truth']) for case in shown]
    for group, shown in result.items()
  } == {'first': [('0', None, ''), ('1', None, ''), ('2', None, '')]}


@pytest.mark.parametrize(
  'entry, expected',
  [
    ({'gt_answers': ['red', 'dark red', 'red']}, 'red / dark red'),
    ({'gt_answers': 'B'}, 'B'),
    ({}, ''),
    ({'gt_answers': [10, 0, 40, 50]}, '[0.35, 0.00, 0.65, 0.50]'),
    (
      {'gt_answers': [[10, 0, 40, 50], [0, 0, 50, 99]]},
      '[0.35, 0.00, 0.65, 0.50; 0.25, 0.00, 0.75, 0.99]',
    ),
    (
      {
        'objects': [
          {'name': 'dog', 'bbox': [10, 0, 30, 50]},
          {'name': 'cat', 'bbox': [0, 0, 50, 50]},
          {'name': 'dog', 'bbox': [0, 0, 50, 99]},
        ]
      },
      'dog [0.35, 0.00, 0.65, 0.50; 0.25, 0.00, 0.75, 0.99], cat [0.25, 0.00, 0.75, 0.50]',
    ),
    (
      {'person': {'keypoints': [25, 50, 2] + [0, 0, 0] * 15 + [0, 100, 1]}},
      'nose [0.50, 0.50], right ankle [0.25, 0.99]',
    ),
  ],
)
def test_the_truth_is_formatted_like_an_answer(entry, expected):
  """The image is 50 pixels wide and 100 high, with 25 pixels of padding at each side."""
  assert (
    cases.format_truth(entry, 50, 100)
    == cases.format_truth(entry | {'width': 50, 'height': 100}, 1, 1)
    == expected
  )
  if '[' in expected:
    assert coordinates.parse_groups(expected)


def test_without_an_image_boxes_are_left_in_pixels():
  assert cases.format_truth({'gt_answers': [10, 0, 40, 50]}, None, None) == '[[10, 0, 40, 50]]'
