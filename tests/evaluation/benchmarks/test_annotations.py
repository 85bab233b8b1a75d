"""The official SPHINX annotation files: all load, and perfect and wrong answers score 1 and 0."""

import gzip
import json
import re

import pytest

from sphinx_jax.configs import benchmarks
from sphinx_jax.core import boxes, coordinates
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.benchmarks import annotations
from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS
from tests.evaluation.benchmarks import benchmark_files

TABLE = benchmarks.get_config()
FILES = {
  row.file.removeprefix('annotations/').removesuffix('.json'): name
  for name, row in TABLE.items()
  if row.reader == 'annotations'
}
HERE = sorted(
  path.stem
  for path in benchmark_files.ANNOTATIONS.glob('*.json')
  if path.stem != 'annotation_config'
)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  root = tmp_path_factory.mktemp('root')
  benchmark_files.annotations(root)
  benchmark_files.annotators(root)
  return root


def perfect(protocol, entry):
  """The answer of a perfect model. A box has enough decimals to lose nothing."""
  truth = entry['gt_answers']
  if protocol == 'miou0.5':
    height, width = (int(part) for part in re.findall(r'\d+', entry['question_id']))
    return coordinates.format_box(boxes.pad_box(truth, width, height), 8)
  return truth if isinstance(truth, str) else truth[0]


def answered(benchmark, answer):
  return [
    question.entry | {'id': question.id, 'answer': answer(question.entry)}
    for question in benchmark.questions
  ]


ROWS = [
  {'image_path': 'a.jpg', 'question': question, 'question_id': i, 'gt_answers': answer}
  for i, (question, answer) in enumerate([('Is it?', 'yes'), (7, 3.5)])
]


@pytest.mark.parametrize(
  'data',
  [
    json.dumps(ROWS).encode('utf-8-sig'),
    '\r\n\r\n'.join(map(json.dumps, ROWS)).encode(),
    gzip.compress('\n'.join(map(json.dumps, ROWS)).encode(), mtime=0),
  ],
)
def test_a_file_may_be_json_lines_or_packed(tmp_path, data):
  (tmp_path / 'a.json').write_bytes(data)
  questions = annotations.read('here', tmp_path, '{}!', 'a.json')
  assert [question.prompt for question in questions] == ['Is it?!', '7!']


@pytest.mark.parametrize('value', [None, True, float('nan'), float('inf'), '\ud800'])
@pytest.mark.parametrize('key', ['question', 'gt_answers'])
def test_a_value_that_is_no_text_is_refused(tmp_path, key, value):
  (tmp_path / 'a.json').write_text(json.dumps([{**ROWS[0], key: value}]))
  with pytest.raises(SphinxError, match=f"under '{key}'.*a text or a number"):
    annotations.read('here', tmp_path, '{}', 'a.json')


@pytest.mark.parametrize(
  'name', ['vsr_val', 'refcoco_val', 'mme', 'gqa_testdev', 'chartqa_test_human']
)
def test_any_truth_of_a_file_is_scored_or_refused(tmp_path, name):
  protocol, scored = TABLE[name].protocol, 0
  truths = [
    'yes',
    3.5,
    3,
    '',
    'ab',
    ['a', 'b'],
    ['a', 3],
    [1, 2, 3, 4],
    ['1', '2', '3', '4'],
    [1, 2],
  ]
  truths += [[], [None], {}, {'a': 1}, [[1, 2, 3, 4]], [1, 2, 3, float('inf')], [True] * 4]
  for truth in truths:
    row = {'image_path': 'existence/1.png', 'question': 'q', 'question_id': 'height4_width6'}
    rows = [row | {'gt_answers': truth}] * 2
    benchmark_files.file(tmp_path, TABLE[name].file, rows)
    try:
      entries = answered(benchmark_files.opened(name, tmp_path), lambda entry: '3.5')
      PROTOCOLS[protocol](entries), PER_EXAMPLE[protocol](entries)
      scored += 1
    except SphinxError as error:
      assert any(word in str(error) for word in ('gt_answers', 'true', 'answer')), error
  assert scored >= 1


@pytest.mark.parametrize('file', HERE)
def test_every_official_file_is_in_the_table_and_loads(root, file):
  benchmark = benchmark_files.opened(FILES[file], root)
  rows = benchmark_files.rows(file)
  assert len(benchmark.questions) == len(rows) == 60
  assert (
    len({question.id for question in benchmark.questions}) == 60
  )  # The official ids are not unique.
  for question, row in zip(benchmark.questions, rows):
    assert row['question'] in question.prompt
    assert question.prompt == TABLE[FILES[file]].prompt.format(row['question'])
    assert (
      question.images[0] == root / row['image_path']
      and question.entry['question_id'] == row['question_id']
    )


@pytest.mark.parametrize('file', HERE)
def test_perfect_answers_have_full_marks_and_wrong_ones_none(root, file):
  benchmark = benchmark_files.opened(FILES[file], root)
  row, protocol = TABLE[FILES[file]], benchmark.protocol
  right = answered(benchmark, lambda entry: perfect(protocol, entry))
  wrong = answered(benchmark, lambda entry: 'qqqq zzzz')
  marks, none = PROTOCOLS[protocol](right), PROTOCOLS[protocol](wrong)
  # MME has 200 points per subtask, and the file has some of the subtasks.
  subtasks = {entry['image_path'].split('/')[-3] for entry in right}
  assert marks[row.metric] == pytest.approx(200 * len(subtasks) if file == 'MME_benchmark' else 1)
  assert none[row.metric] == 0
  assert (
    PER_EXAMPLE[protocol](right) == pytest.approx([1] * 60)
    and PER_EXAMPLE[protocol](wrong) == [0] * 60
  )
  if (
    protocol != 'vqa_score'
  ):  # Its official scoring keeps articles, which can lower the score of a perfect answer.
    assert PROTOCOLS[protocol]([e | {'gt_answers': _single(e)} for e in right], official=True)[
      row.metric
    ] == pytest.approx(marks[row.metric])


def _single(entry):
  truth = entry['gt_answers']
  return truth if isinstance(truth, str) or isinstance(truth[0], float) else truth[0]


def test_all_annotators_answers_come_from_the_data_sets_file(root):
  entry = benchmark_files.opened('okvqa_val', root).questions[0].entry
  assert entry['gt_answers'] == [benchmark_files.rows('okvqa_val')[0]['gt_answers']] * 10
  assert (
    benchmark_files.opened('docvqa_val', root).questions[0].entry['gt_answers'][1]
    == 'another spelling'
  )


def test_the_original_files_of_textvqa_and_vizwiz_do_too(tmp_path):
  benchmark_files.annotations(tmp_path)
  benchmark_files.file(
    tmp_path,
    'data/textvqa/TextVQA_0.5.1_val.json',
    {
      'data': [
        {'question_id': row['question_id'], 'answers': ['nous les gosses'] * 10}
        for row in benchmark_files.rows('textvqa_val')
      ]
    },
  )
  benchmark_files.file(
    tmp_path,
    'data/vizwiz/val.json',
    [
      {
        'image': row['image_path'].split('/')[-1],
        'answers': [{'answer': 'blue', 'answer_confidence': 'yes'}] * 10,
      }
      for row in benchmark_files.rows('vizwiz_val')
    ],
  )
  for name, answer in (('textvqa_val', 'nous les gosses'), ('vizwiz_val', 'blue')):
    assert benchmark_files.opened(name, tmp_path).questions[59].entry['gt_answers'] == [answer] * 10


@pytest.mark.parametrize('name', ['okvqa_val', 'textvqa_val', 'vizwiz_val', 'docvqa_val'])
def test_a_missing_file_of_answers_is_named(tmp_path, name):
  benchmark_files.annotations(tmp_path)
  annotation = TABLE[name].annotation
  with pytest.raises(
    SphinxError, match=annotation if isinstance(annotation, str) else annotation[0]
  ):
    benchmark_files.opened(name, tmp_path)


def test_a_missing_annotation_file_is_named(tmp_path):
  with pytest.raises(SphinxError, match='refcoco_val.json'):
    benchmark_files.opened('refcoco_val', tmp_path)


@pytest.mark.parametrize(
  'value, message',
  [
    ([], 'no question'),
    ({}, 'a dict'),
    ('{', 'not JSON'),
    ([{'image_path': 'a.jpg'}], "without 'question'"),
    ([ROWS[0] | {'image_path': None}], "None under 'image_path'"),
    (['text'], 'without'),
  ],
)
def test_another_file_is_refused(tmp_path, value, message):
  benchmark_files.file(tmp_path, 'annotations/vsr_val.json', value)
  with pytest.raises(SphinxError, match=message):
    benchmark_files.opened('vsr_val', tmp_path)


@pytest.mark.parametrize(
  'value, message',
  [
    ({'annotations': []}, 'no answers to question 2293835'),
    ({}, "without 'data'"),
    ([3], "without 'image'"),
    (3, "without 'data'"),
    ({'annotations': [{'question_id': 2293835, 'answers': 'yes'}]}, "a str under 'answers'"),
  ],
)
def test_another_file_of_answers_is_refused(tmp_path, value, message):
  benchmark_files.annotations(tmp_path)
  benchmark_files.file(tmp_path, 'data/okvqa/mscoco_val2014_annotations.json', value)
  with pytest.raises(SphinxError, match=message):
    benchmark_files.opened('okvqa_val', tmp_path)
