import io
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample, Record
from sphinx_jax.evaluation import held_out as tasks
from tests.generate import small

RED, BLUE = (
  np.full((8, 8, 3), (250, 10, 10), np.uint8),
  np.full((8, 12, 3), (10, 10, 250), np.uint8),
)


def png(pixels):
  buffer = io.BytesIO()
  Image.fromarray(pixels).save(buffer, 'PNG')
  return buffer.getvalue()


def question(i, pixels, answer, turns=1):
  return Record(
    f'v{i}',
    'vqa',
    png(pixels),
    (('What is the color?', answer),) * turns,
    ({'answer': answer},) * turns,
  )


def test_what_is_asked_about_is_never_trained_on(tmp_path):
  """A source with splits is asked for another one; a file of the user's own has its held-out file in `validation`."""
  for name in ('mine', 'held'):
    line = {'conversations': [{'from': 'human', 'value': 'Which?'}, {'from': 'gpt', 'value': name}]}
    (tmp_path / f'{name}.jsonl').write_text(json.dumps(line) + '\n')
  entry = lambda name: dict(source='jsonl', path=f'{name}.jsonl', task='dialog')
  config = ConfigDict(
    dict(
      name='run',
      data_dir=str(tmp_path),
      mixture=dict(mine=entry('mine'), other=entry('mine')),
      validation=dict(mine=entry('held')),
    )
  )
  answer = lambda split: tasks.open_split(config, ['mine'], split)['mine'][0].turns[0][1]
  assert (answer('test'), answer('train')) == ('held', 'mine')
  with pytest.raises(errors.SphinxError, match='name them in config.validation.other'):
    tasks.open_split(config, ['other'], 'test')
  with pytest.raises(errors.SphinxError, match="did you mean 'mine'"):
    tasks.open_split(config, ['min'], 'test')


class Records(list):
  """A source; an exception in the list is raised."""

  name = 'records'

  def __getitem__(self, index):
    item = super().__getitem__(index)
    if isinstance(item, Exception):
      raise item
    return item


class Painter:
  """Stands for a Model that sees colours perfectly; counts what it was asked."""

  tokenizer = small.tokenizer()

  def __init__(self):
    self.asked = []

  def answers(self, prompts, images, max_new_tokens, expected, batch_size, params):
    self.asked += prompts
    return [
      'red' if image[..., 0].mean() > 200 else 'blue' if image[..., 2].mean() > 200 else 'grey'
      for image in images
    ]


@pytest.fixture
def sources():
  return {
    'vqa': Records(
      [question(i, RED, 'red') if i % 2 else question(i, BLUE, 'blue') for i in range(10)]
    )
  }


def run(folder, sources, generator, **options):
  return tasks.evaluate(
    generator,
    sources,
    mean_image=tasks.mean_image(sources, 8),
    folder=folder,
    **{'examples': 100, 'run': 'a'} | options,
  )


def test_seeing_answers_right_and_blind_answers_wrong(tmp_path, sources):
  result = run(tmp_path, sources, Painter())['vqa']
  assert (result['final'], result['low'], result['high']) == (1, 1, 1)
  assert (result['blind'], result['blind_high'], result['examples']) == (0, 0, 10)
  assert result['metric'] == 'accuracy'
  assert json.loads((tmp_path / 'results.json').read_text()) == {'vqa': result}


def test_predictions_can_be_scored_again_from_their_lines(tmp_path, sources):
  run(tmp_path, sources, Painter())
  lines = tasks.read(tmp_path / 'vqa.final.jsonl')
  assert [line['id'] for line in lines] == [f'v{i}' for i in range(10)]
  assert all(
    tasks.TASKS[line['task']].score(line['prediction'], line['truth'])
    == (line['numerator'], line['denominator'])
    for line in lines
  )
  assert np.array_equal(np.asarray(Image.open(tmp_path / lines[0]['image'])), BLUE)
  assert {line['prediction'] for line in tasks.read(tmp_path / 'vqa.blind.jsonl')} == {'grey'}


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, sources):
  whole = run(tmp_path, sources, Painter())
  again = Painter()
  assert run(tmp_path, sources, again) == whole and not again.asked
  (tmp_path / 'vqa.blind.jsonl').rename(
    tmp_path / 'vqa.blind.tmp'
  )  # as after a kill in the middle of the blind model
  assert run(tmp_path, sources, again) == whole and len(again.asked) == 10


def test_the_folder_of_another_run_is_refused(tmp_path, sources):
  run(tmp_path, sources, Painter())
  with pytest.raises(errors.SphinxError, match='another folder'):
    run(tmp_path, sources, Painter(), run='b')


def test_bad_examples_are_named_and_skipped(tmp_path, sources, caplog):
  broken = question(0, RED, 'red')
  truncated = Record('cut', 'vqa', broken.image[:40], broken.turns, broken.truth)
  sources['vqa'][:2] = [BadExample('empty answer', 'the third answer is empty'), truncated]
  with caplog.at_level('WARNING', 'sphinx_jax'):
    assert run(tmp_path, sources, Painter())['vqa']['examples'] == 8
  assert 'the third answer is empty' in caplog.text and 'example 1 skipped' in caplog.text


def test_a_source_without_a_usable_example_is_an_error(tmp_path, sources):
  sources['ocr'] = Records([BadExample('empty answer', 'nothing')])
  with pytest.raises(errors.SphinxError, match="task 'ocr'"):
    run(tmp_path, sources, Painter())


def test_every_turn_is_asked_after_the_true_turns_before_it(tmp_path):
  painter = Painter()
  result = run(
    tmp_path, {'vqa': Records([question(i, RED, 'red', turns=2) for i in range(3)])}, painter
  )
  turn = ('What is the color?', 'red')
  assert (
    painter.asked[:2] == [[(turn[0], None)], [turn, (turn[0], None)]]
    and result['vqa']['examples'] == 6
  )


def test_answers_about_one_picture_are_resampled_together():
  def lines(ids):
    return [
      {'id': i, 'task': 'vqa', 'numerator': n % 2, 'denominator': 1} for n, i in enumerate(ids)
    ]

  apart = tasks.summary(lines(range(40)), lines(range(40)))
  pairs = tasks.summary(lines(np.arange(40) % 20), lines(np.arange(40) % 20))
  assert apart['final'] == pairs['final'] == 0.5
  assert pairs['high'] - pairs['low'] > 1.2 * (apart['high'] - apart['low'])


def test_the_mean_image_is_the_mean_over_all_sources(sources):
  sources['text'] = Records([Record('t', 'text', None, (('q', 'a'),), ({},))])
  mean = tasks.mean_image(sources, 12, examples=2)
  assert mean.shape == (12, 12, 3) and mean.dtype == np.uint8
  np.testing.assert_allclose(mean[6, 6], [130, 10, 130], atol=1)


def test_a_real_model_is_evaluated(tmp_path, sources):
  result = run(tmp_path, sources, small.model(), examples=3)['vqa']
  assert result['examples'] == 3 and 0 <= result['low'] <= result['final'] <= result['high'] <= 1
