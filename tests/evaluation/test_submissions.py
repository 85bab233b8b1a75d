"""Test sets with hidden answers: their questions, and the files to submit."""

import json

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.submissions import submission
from tests.evaluation.benchmarks import benchmark_files


@pytest.fixture
def root(tmp_path):
  benchmark_files.file(
    tmp_path,
    'data/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json',
    {
      'questions': [
        {'image_id': 262144, 'question': 'Is the ball flying?', 'question_id': 262144000},
        {'image_id': 262144, 'question': 'What sport?', 'question_id': 262144001},
      ]
    },
  )
  benchmark_files.file(
    tmp_path,
    'data/vizwiz/test.json',
    [
      {'image': 'VizWiz_test_00000000.jpg', 'question': 'What is this?'},
      {'image': 'VizWiz_test_00000001.jpg', 'question': 'Colour?'},
    ],
  )
  benchmark_files.file(
    tmp_path,
    'data/docvqa/test/test_v1.0.json',
    {
      'dataset_name': 'SP-DocVQA',
      'data': [
        {
          'questionId': 57344,
          'question': 'What is the date?',
          'image': 'documents/xnbl0037_1.png',
          'docId': 1,
        },
        {'questionId': 57345, 'question': 'Who?', 'image': 'documents/xnbl0037_1.png', 'docId': 1},
      ],
    },
  )
  return tmp_path


def predicted(benchmark, answers=('blue', 'naïve "x"')):
  return [
    question.entry | {'id': question.id, 'prompt': question.prompt, 'answer': answer}
    for question, answer in zip(benchmark.questions, answers, strict=True)
  ]


@pytest.mark.parametrize(
  'name, image, rows',
  [
    (
      'vqav2_testdev',
      'data/coco/test2015/COCO_test2015_000000262144.jpg',
      [
        {'question_id': 262144000, 'answer': 'blue'},
        {'question_id': 262144001, 'answer': 'naïve "x"'},
      ],
    ),
    (
      'vizwiz_test',
      'data/vizwiz/test/VizWiz_test_00000000.jpg',
      [
        {'image': 'VizWiz_test_00000000.jpg', 'answer': 'blue'},
        {'image': 'VizWiz_test_00000001.jpg', 'answer': 'naïve "x"'},
      ],
    ),
    (
      'docvqa_test',
      'data/docvqa/test/documents/xnbl0037_1.png',
      [{'questionId': 57344, 'answer': 'blue'}, {'questionId': 57345, 'answer': 'naïve "x"'}],
    ),
  ],
)
def test_files_have_the_form_that_the_servers_take(root, name, image, rows):
  benchmark = benchmark_files.opened(name, root)
  assert benchmark.hidden and benchmark.questions[0].images[0] == root / image
  assert 'gt_answers' not in benchmark.questions[0].entry
  file, data = submission(
    name, predicted(benchmark), [question.id for question in benchmark.questions]
  )
  assert file == f'{name}_submission.json' and json.loads(data) == rows


def test_every_question_needs_one_answer(root):
  benchmark = benchmark_files.opened('vqav2_testdev', root)
  lines, ids = predicted(benchmark), [question.id for question in benchmark.questions]
  for entries, message in (
    (lines[:1], "1 questions without an answer, for example '262144001'"),
    (lines + lines[:1], 'with two answers'),
    ([], '2 questions without'),
    ([*lines, {**lines[0], 'id': '3'}], "not in the benchmark, for example '3'"),
  ):
    with pytest.raises(SphinxError, match=message):
      submission('vqav2_testdev', entries, ids)


def test_a_benchmark_with_truth_has_no_submission():
  with pytest.raises(SphinxError, match="did you mean 'vqav2_testdev'"):
    submission('vqav2_test', [], [])


def test_a_wrong_file_is_an_error(root):
  benchmark_files.file(root, 'data/vizwiz/test.json', [{'question': 'What?'}])
  with pytest.raises(SphinxError, match="without 'image'"):
    benchmark_files.opened('vizwiz_test', root)
