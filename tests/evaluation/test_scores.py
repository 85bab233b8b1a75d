from sphinx_jax.evaluation import scores
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark


def benchmark(protocol, hidden=False, **settings):
  return Benchmark('b', (), '', 5, protocol, hidden, settings)


def entry(truth, answer, subtask='color', image=0, **more):
  return {
    'gt_answers': truth,
    'answer': answer,
    'image_path': f'data/{subtask}/{image}.png',
  } | more


def test_a_skipped_question_is_counted_and_wrong():
  lines = [entry('red', 'red'), entry('red', '', skipped='missing image')]
  result = scores.result(benchmark('accuracy', published=70.0, metric='accuracy'), lines)
  assert (result['metrics'], result['skipped'], result['questions']) == ({'accuracy': 0.5}, 1, 2)
  (row,) = scores.rows({'b': result})
  assert row == {
    'benchmark': 'b',
    'metric': 'accuracy',
    'score': '50.00',
    'published': '70',
    'questions': '2',
    'skipped': '1',
  }


def test_the_official_scores_may_differ():
  lines = [entry('C', 'The answer is C.')]
  ours, official = (
    scores.result(benchmark('accuracy'), lines, flag)['metrics']['accuracy']
    for flag in (False, True)
  )
  assert (ours, official) == (1, 0)


def test_mme_is_in_points_and_its_accuracies_are_in_percent():
  lines = [entry('Yes', 'yes'), entry('No', 'yes')]
  result = scores.result(benchmark('mme_score', metric='total', published=1.5), lines)
  rows = {row['metric']: row for row in scores.rows({'mme': result})}
  assert (
    list(rows)[0] == 'total'
    and rows['total']['published'] == '1.5'
    and rows['color']['published'] == ''
  )
  assert (rows['total']['score'], rows['color acc']['score'], rows['color acc+']['score']) == (
    '50.0',
    '50.00',
    '0.00',
  )


def test_a_hidden_truth_has_no_score():
  result = scores.result(
    benchmark('vqa_score', hidden=True, metric='vqa_score', published=80.7), [{'answer': 'a'}]
  )
  assert result['metrics'] == {} and scores.rows({'b': result})[0]['score'] == 'hidden'


def test_the_columns_of_the_table_are_aligned():
  result = scores.result(
    benchmark('accuracy', metric='accuracy', published=70.6), [entry('a', 'a')]
  )
  lines = scores.table({'x': result, 'long name': result}).splitlines()
  assert (
    len({lines[0].index('metric'), *(line.index('accuracy') for line in lines[1:])}) == 1
    and len(lines) == 3
  )
  assert lines[1].split() == ['x', 'accuracy', '100.00', '70.6', '1', '0']
