import dataclasses
import gzip
import json
import re

import pytest

from sphinx_jax.core import errors
from sphinx_jax.evaluation import predictions
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, Question

QUESTIONS = tuple(Question(str(i), (), f'question {i}', {'gt_answers': 'yes'}) for i in range(3))
BENCHMARK = Benchmark('b', QUESTIONS, '', 5, 'accuracy', False, {})


def write(file, *lines):
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return file


def test_any_file_with_ids_and_answers_is_scored_against_the_truth_of_the_benchmark(tmp_path):
  file = write(
    tmp_path / 'x.jsonl',
    *({'id': str(i), 'answer': 'no', 'gt_answers': 'no'} for i in (2, 0, 1, 7)),
  )
  entries = predictions.entries(BENCHMARK, file)
  assert entries == [{'id': str(i), 'answer': 'no', 'gt_answers': 'yes'} for i in range(3)]


def test_a_file_with_too_few_answers_is_not_scored(tmp_path):
  file = write(tmp_path / 'x.jsonl', {'id': '1', 'answer': 'no'})
  with pytest.raises(errors.SphinxError, match=r'1 of 3 answers, expected all \(missing: 0, 2'):
    predictions.entries(BENCHMARK, file)


def test_a_cut_off_last_line_is_dropped_and_a_bad_line_is_named(tmp_path):
  file = write(tmp_path / 'x.jsonl', {'id': '1', 'answer': 'é'})
  file.write_text(file.read_text() + '{"id": "2", "ans')
  assert predictions.read(file) == [{'id': '1', 'answer': 'é'}]
  for text in ('{"id": "2", "ans', '{"id": "2"}', '[]', '{"id": 2.5, "answer": null}', '3'):
    file.write_text(f'{text}\n' + json.dumps({'id': '1', 'answer': 'a'}) + '\n')
    with pytest.raises(errors.SphinxError, match='line 1'):
      predictions.read(file)
  with pytest.raises(errors.SphinxError, match='nowhere'):
    predictions.read(tmp_path / 'nowhere.jsonl')


ANSWERS = [{'id': str(i), 'answer': f'a{i}'} for i in range(3)]
LINES = '\n'.join(map(json.dumps, ANSWERS))


@pytest.mark.parametrize(
  'data',
  [
    LINES.encode(),  # As '\n'.join and pandas write it.
    f'{LINES}\n\n'.encode(),
    LINES.replace('\n', '\r\n').encode('utf-8-sig'),
    json.dumps(ANSWERS, indent=1).encode(),
    gzip.compress(LINES.encode(), mtime=0),
    re.sub('"([0-2])"', r'\1.0', LINES).encode(),
  ],
)
def test_answers_of_other_programs_are_read(tmp_path, data):
  file = tmp_path / 'x.jsonl'
  file.write_bytes(data)
  assert [entry['answer'] for entry in predictions.entries(BENCHMARK, file)] == ['a0', 'a1', 'a2']


def test_two_answers_with_one_id_are_refused(tmp_path):
  file = write(tmp_path / 'x.jsonl', *ANSWERS, {'id': '1', 'answer': 'other'})
  with pytest.raises(errors.SphinxError, match="got 2 answers with the id '1'"):
    predictions.entries(BENCHMARK, file)


@pytest.mark.parametrize(
  'text', ['[{"id": "0"},]', '{"id": "0"}\r{"id": "1"}', '<html>', '[' * 9999]
)
def test_a_file_of_another_kind_is_no_line_that_was_cut_off(tmp_path, text):
  (tmp_path / 'x.jsonl').write_bytes(text.encode())
  with pytest.raises(errors.SphinxError, match='line 1'):
    predictions.read(tmp_path / 'x.jsonl')


def test_answers_to_other_questions_are_told(tmp_path, caplog):
  file = write(tmp_path / 'x.jsonl', *ANSWERS, {'id': '007', 'answer': ''}, {'id': 8, 'answer': 3})
  predictions.entries(BENCHMARK, file)
  assert "2 answers belong to no question of 'b'" in caplog.text and "'007'" in caplog.text
  question = dataclasses.replace(QUESTIONS[0], entry={'image_path': 'data/a/1.png'})
  benchmark = dataclasses.replace(BENCHMARK, questions=[question])
  write(file, ANSWERS[0] | {'image_path': '/here/a/1.png'})
  assert predictions.entries(benchmark, file)
  write(file, ANSWERS[0] | {'image_path': 'data/a/2.png'})
  with pytest.raises(errors.SphinxError, match="id '0': got image_path 'data/a/2.png'"):
    predictions.entries(benchmark, file)


def test_the_number_of_a_line_counts_blank_lines(tmp_path):
  file = tmp_path / 'x.jsonl'
  file.write_text('\n\n{"id": "1"}\n')
  with pytest.raises(errors.SphinxError, match='line 3'):
    predictions.read(file)


def test_benchmarks_can_be_added_to_a_folder_later(tmp_path):
  other = Benchmark('c', QUESTIONS, '', 9, 'accuracy', False, {})
  predictions.claim(tmp_path / 'out', 'a', [BENCHMARK])
  predictions.claim(tmp_path / 'out', 'a', [other])
  predictions.claim(tmp_path / 'out', 'a', [BENCHMARK])
  assert set(json.loads((tmp_path / 'out' / 'run.json').read_text())['benchmarks']) == {'b', 'c'}


def test_a_folder_of_tasks_and_one_of_benchmarks_do_not_mix(tmp_path):
  predictions.claim_folder(tmp_path / 'out', {'run': 'a', 'examples': 3})
  predictions.claim_folder(tmp_path / 'out', {'run': 'a', 'examples': 3})
  with pytest.raises(errors.SphinxError, match='examples: 3 there, 4 here'):
    predictions.claim_folder(tmp_path / 'out', {'run': 'a', 'examples': 4})
  with pytest.raises(errors.SphinxError, match='another folder'):
    predictions.claim(tmp_path / 'out', 'a', [BENCHMARK])


def test_answers_of_other_weights_or_other_files_of_a_benchmark_do_not_mix(tmp_path):
  def claim(weights='w', **hashes):
    benchmark = dataclasses.replace(BENCHMARK, files=hashes)
    predictions.claim(tmp_path, 'run at step 5', [benchmark], weights)

  predictions.claim_folder(  # As an older version wrote it.
    tmp_path,
    {'checkpoint': 'run at step 5', 'benchmarks': {'b': {'prefix': '', 'max_new_tokens': 5}}},
  )
  claim(file='10 bytes, a')
  claim(file='10 bytes, a')
  with pytest.raises(errors.SphinxError, match="weights: 'w' there, 'v' here"):
    claim('v', file='10 bytes, a')
  with pytest.raises(errors.SphinxError, match="b.files.file: '10 bytes, a' there, '9 bytes, b'"):
    claim(file='9 bytes, b')
