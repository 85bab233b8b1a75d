import io
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sphinx_jax import datasets
from sphinx_jax.core import errors, files
from sphinx_jax.data.record import BadExample, Record
from sphinx_jax.evaluation import held_out
from sphinx_jax.tasks import TASKS
from tests.evaluation.questions import Painter
from tests.generate import small

RED = np.full((8, 8, 3), (250, 10, 10), np.uint8)
BLUE = np.full((8, 12, 3), (10, 10, 250), np.uint8)


def png(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()


def question(i, pixels, answer, turns=1):
  return Record(
    f'v{i}',
    'vqa',
    (png(pixels),),
    (('What is the color?', answer),) * turns,
    ({'answer': answer},) * turns,
  )


def test_records_that_are_trained_on_are_never_asked_about(tmp_path):
  """A source with splits opens another split; a file of the user's own needs `validation`."""
  for name in ('mine', 'held_out'):
    line = {'conversations': [{'from': 'human', 'value': 'Which?'}, {'from': 'gpt', 'value': name}]}
    (tmp_path / f'{name}.jsonl').write_text(json.dumps(line) + '\n')

  def entry(name):
    return dict(source='jsonl', path=f'{name}.jsonl', task='dialog')

  config = ConfigDict(
    dict(
      name='run',
      data_dir=str(tmp_path),
      mixture=dict(mine=entry('mine'), other=entry('mine')),
      validation=dict(mine=entry('held_out')),
    )
  )

  def answer(split):
    return held_out.open_split(config, ['mine'], split)['mine'][0].turns[0][1]

  assert (answer('test'), answer('train')) == ('held_out', 'mine')
  with pytest.raises(errors.SphinxError, match='name them in config.validation.other'):
    held_out.open_split(config, ['other'], 'test')
  with pytest.raises(errors.SphinxError, match="did you mean 'mine'"):
    held_out.open_split(config, ['min'], 'test')


def test_a_split_that_is_asked_for_is_not_the_validation_set(monkeypatch):
  """Weights that are learned on validation sets are scored on another split."""
  drawn = dict(source='miniworld', task='vqa', split='train')
  published = dict(source='coco', root='coco', task='pose', split='train2014')
  validation = dict(
    drawn=dict(drawn, split='validation'), published=dict(published, split='val2014')
  )
  mixture = dict(drawn=drawn, published=published, alone=dict(drawn))
  config = ConfigDict(dict(name='run', data_dir='', mixture=mixture, validation=validation))
  monkeypatch.setattr(datasets, 'open_source', lambda entry, data_dir: entry['split'])
  opened = lambda split: held_out.open_split(config, list(mixture), split)
  assert opened('train') == dict(drawn='train', published='train2014', alone='train')
  assert opened('validation') == dict(drawn='validation', published='val2014', alone='validation')
  assert opened(None) == dict(drawn='validation', published='val2014', alone='test')
  assert opened('test') == dict(drawn='test', published='test', alone='test')


def test_a_mixture_without_a_metric_is_refused_with_the_way_to_score_it():
  """As after configs/forkme.py. An entry without 'task' has the usual task of its source."""
  mixture = dict(
    mine=dict(source='jsonl', path='x'), text=dict(source='plain_text'), vqa=dict(source='vqav2')
  )
  config = ConfigDict(dict(name='forkme', mixture=mixture))
  assert (
    held_out.tasks_with_metric(config) == held_out.tasks_with_metric(config, ['vqa']) == ['vqa']
  )
  with pytest.raises(
    errors.SphinxError, match=r"'mine' \(dialog\), without a metric.*--benchmarks"
  ):
    held_out.tasks_with_metric(config, ['vqa', 'mine'])
  with pytest.raises(errors.SphinxError, match="did you mean 'mine'"):
    held_out.tasks_with_metric(config, ['min'])
  del config.mixture['vqa']
  with pytest.raises(errors.SphinxError, match=r"'text' \(text\), without a metric.*--benchmarks"):
    held_out.tasks_with_metric(config)


class Records(list):
  """A source; it raises the exceptions in the list."""

  name = 'records'
  files = {}

  def __getitem__(self, index):
    item = super().__getitem__(index)
    if isinstance(item, Exception):
      raise item
    return item


@pytest.fixture
def sources():
  return {
    'vqa': Records(
      [question(i, RED, 'red') if i % 2 else question(i, BLUE, 'blue') for i in range(10)]
    )
  }


def run(folder, sources, model, **options):
  mean_image = held_out.mean_image(sources, 8)
  options = {'examples': 100, 'run': 'a'} | options
  return held_out.evaluate(model, sources, mean_image=mean_image, folder=folder, **options)


def test_a_model_that_sees_is_right_with_the_image_and_wrong_blind(tmp_path, sources):
  result = run(tmp_path, sources, Painter())['vqa']
  assert (result['final'], result['low'], result['high']) == (1, 1, 1)
  assert (result['blind'], result['blind_high'], result['examples']) == (0, 0, 10)
  assert result['metric'] == 'accuracy'
  assert json.loads((tmp_path / 'results.json').read_text()) == {'vqa': result}


def test_models_that_are_compared_are_not_asked_blind(tmp_path, sources):
  assert held_out.score(Painter(), sources, 100, tmp_path, 'a') == {'vqa': 1}
  assert not (tmp_path / 'vqa.blind.jsonl').exists()
  # A full evaluation of the same run goes on from there.
  assert run(tmp_path, sources, Painter())['vqa']['final'] == 1


def test_scored_lines_hold_all_that_scoring_needs(tmp_path, sources):
  run(tmp_path, sources, Painter())
  lines = files.read_jsonl(tmp_path / 'vqa.final.jsonl')
  assert [line['id'] for line in lines] == [f'v{i}' for i in range(10)]
  assert list(lines[0]) == [
    'id',
    'task',
    'instruction',
    'prediction',
    'answer',
    'truth',
    'numerator',
    'denominator',
    'image',
  ]
  for line in lines:
    scores = TASKS[line['task']].score(line['prediction'], line['truth'])
    assert scores == (line['numerator'], line['denominator'])
  assert np.array_equal(np.asarray(Image.open(tmp_path / lines[0]['image'])), BLUE)
  blind = files.read_jsonl(tmp_path / 'vqa.blind.jsonl')
  assert {line['prediction'] for line in blind} == {'gray'}


def test_a_question_about_two_images_sees_both_at_their_marks_and_blind_neither(tmp_path):
  record = Record(
    'pair',
    'vqa',
    (png(RED), png(BLUE)),
    (('Is <image> or <image>?', 'red blue'),),
    ({'answer': 'red blue'},),
  )
  model = Painter()
  assert run(tmp_path, {'vqa': Records([record])}, model)['vqa']['final'] == 1
  (line,) = files.read_jsonl(tmp_path / 'vqa.final.jsonl')
  assert 'Human: Is or' in ' '.join(model.prompts[0].split())
  assert np.asarray(Image.open(tmp_path / line['image'])).shape == (8, 8 + 8 + 12, 3)
  (blind,) = files.read_jsonl(tmp_path / 'vqa.blind.jsonl')
  assert blind['prediction'] == 'gray gray'


def test_a_finished_pass_is_not_computed_again(tmp_path, sources):
  whole = run(tmp_path, sources, Painter())
  names = {path.name for path in tmp_path.iterdir()}
  assert names == {'run.json', 'vqa.final.jsonl', 'vqa.blind.jsonl', 'images', 'results.json'}
  again = Painter()
  assert run(tmp_path, sources, again) == whole and not again.prompts
  (tmp_path / 'vqa.blind.jsonl').unlink()
  assert run(tmp_path, sources, again) == whole and len(again.prompts) == 10


def test_a_killed_evaluation_resumes_inside_a_task(tmp_path, sources):
  whole = run(tmp_path / 'whole', sources, Painter(), batch_size=1)
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path / 'killed', sources, Painter(calls=4), batch_size=1)
  resumed = Painter()
  assert run(tmp_path / 'killed', sources, resumed, batch_size=1) == whole
  # Ten questions are three calls. The blind pass was killed in its second one, after four answers.
  assert len(resumed.prompts) == 6
  for path in (tmp_path / 'whole').glob('*.json*'):
    assert (tmp_path / 'killed' / path.name).read_text() == path.read_text()


def test_the_folder_of_another_run_is_an_error(tmp_path, sources):
  run(tmp_path, sources, Painter())
  with pytest.raises(errors.SphinxError, match='another folder'):
    run(tmp_path, sources, Painter(), run='b')


def test_bad_examples_are_named_and_skipped(tmp_path, sources, caplog):
  broken = question(0, RED, 'red')
  truncated = Record('cut', 'vqa', (broken.images[0][:40],), broken.turns, broken.truth)
  sources['vqa'][:2] = [BadExample('empty answer', 'the third answer is empty'), truncated]
  with caplog.at_level('WARNING', 'sphinx_jax'):
    assert run(tmp_path, sources, Painter())['vqa']['examples'] == 8
  assert 'the third answer is empty' in caplog.text and 'skipped example 1: ' in caplog.text


def test_many_bad_examples_take_few_lines_of_the_log(tmp_path, sources, caplog):
  """As where half of the images have no two objects to relate."""
  sources['vqa'] = Records([*sources['vqa'], *[BadExample('nothing to ask', '')] * 120])
  with caplog.at_level('WARNING', 'sphinx_jax'):
    run(tmp_path, sources, Painter())
  assert caplog.text.count('skipped example') == 7 and 'nothing to ask; 100 so far' in caplog.text


def test_examples_that_were_mended_are_asked_again(tmp_path, sources):
  whole = list(sources['vqa'])
  sources['vqa'][3] = BadExample('unreadable image', '')
  run(tmp_path / 'all', sources, Painter())
  run(tmp_path / 'five', sources, Painter(), examples=5)
  sources['vqa'][3], sources['vqa'][7] = whole[3], BadExample('unreadable image', '')
  for folder, examples, asked in (('all', 100, 2), ('all', 100, 0), ('five', 5, 2)):
    model = Painter()
    run(tmp_path / folder, sources, model, examples=examples)
    assert len(model.prompts) == asked
  ids = [line['id'] for line in files.read_jsonl(tmp_path / 'five' / 'vqa.final.jsonl')]
  assert ids == ['v0', 'v1', 'v2', 'v3', 'v4']
  # An example that is damaged later keeps its answer.
  sources['vqa'][4] = BadExample('unreadable image', '')
  model = Painter()
  run(tmp_path / 'five', sources, model, examples=5)
  assert len(model.prompts) == 0


def test_a_source_without_a_usable_example_is_an_error(tmp_path, sources):
  sources['ocr'] = Records([BadExample('empty answer', 'nothing')])
  with pytest.raises(errors.SphinxError, match="task 'ocr'"):
    run(tmp_path, sources, Painter())


def test_every_turn_is_asked_after_the_true_turns_before_it(tmp_path):
  painter = Painter()
  source = Records([question(i, RED, 'red', turns=2) for i in range(3)])
  result = run(tmp_path, {'vqa': source}, painter)
  turn = ('What is the color?', 'red')
  prompts = [
    painter.tokenizer.decode(painter.template.prompt(turns, painter.tokenizer).ids)
    for turns in ([(turn[0], None)], [turn, (turn[0], None)])
  ]
  assert painter.prompts[:2] == prompts and result['vqa']['examples'] == 6
  lines = files.read_jsonl(tmp_path / 'vqa.final.jsonl')
  assert [line['id'] for line in lines] == ['v0', 'v0', 'v1', 'v1', 'v2', 'v2']


def test_answers_are_the_ones_of_the_model_for_the_whole_dialog(tmp_path):
  source = Records([question(0, RED, 'red', turns=2)])
  run(tmp_path, {'vqa': source}, small.model())
  line = files.read_jsonl(tmp_path / 'vqa.final.jsonl')[1]
  longest = len(small.tokenizer().encode('red'))
  dialog = [source[0].turns[0], (source[0].turns[1][0], None)]
  (expected,) = small.model().answers([dialog], [RED], max_new_tokens=longest + longest // 2 + 8)
  assert line['prediction'] == expected


def test_answers_about_one_record_are_resampled_together():
  def lines(ids):
    return [
      {'id': i, 'task': 'vqa', 'numerator': n % 2, 'denominator': 1} for n, i in enumerate(ids)
    ]

  apart = held_out.summary(lines(range(40)), lines(range(40)))
  pairs = held_out.summary(lines(np.arange(40) % 20), lines(np.arange(40) % 20))
  assert apart['final'] == pairs['final'] == 0.5
  assert pairs['high'] - pairs['low'] > 1.2 * (apart['high'] - apart['low'])


def test_the_mean_image_is_the_mean_over_all_sources(sources):
  sources['text'] = Records([Record('t', 'text', (), (('q', 'a'),), ({},))])
  mean = held_out.mean_image(sources, 12, examples=2)
  assert mean.shape == (12, 12, 3) and mean.dtype == np.uint8
  np.testing.assert_allclose(mean[6, 6], [130, 10, 130], atol=1)


def test_a_real_model_is_evaluated(tmp_path, sources):
  result = run(tmp_path, sources, small.model(), examples=3)['vqa']
  assert result['examples'] == 3 and 0 <= result['low'] <= result['final'] <= result['high'] <= 1
