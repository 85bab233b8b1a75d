"""The config to copy takes model, tokenizer and dialog from the checkpoint in its argument."""

import json
import pathlib

import pytest
from ml_collections import ConfigDict

from sphinx_jax import convert, peek, run
from sphinx_jax.configs import forkme
from sphinx_jax.core import errors
from sphinx_jax.models import families
from sphinx_jax.planning import plan, sheet, slices

GOLDEN = pathlib.Path(__file__).parent / 'golden'


@pytest.fixture(scope='module')
def released(tmp_path_factory):
  directory = tmp_path_factory.mktemp('released')
  convert.import_checkpoint(
    convert.open_sources([str(GOLDEN / 'models/llama_ens_light/mp1')]),
    str(directory / 'checkpoint'),
  )
  example = {
    'image': str(GOLDEN / 'preproc/f_1x1.png'),
    'conversations': [
      {'from': 'human', 'value': 'What is this?'},
      {'from': 'gpt', 'value': 'A cat.'},
    ],
  }
  (directory / 'my.jsonl').write_text(json.dumps(example) + '\n')
  return directory


def test_released_weights_are_tuned_with_their_own_model_and_tokenizer(released):
  config = forkme.get_config(f'{released}/my.jsonl,{released}/checkpoint')
  assert config.model.llm.vocab == 512 and config.model.image_size == 512
  data = run.open_data(config)
  run.check_parent(config, run.Program(config), data)  # Raises if leaves or tokenizer do not fit.
  batches = data.batches()
  batch, _ = next(batches)
  batches.close()
  assert batch['images'].shape[2:] == (512, 512, 3)
  assert (batch['visual_index'] >= 0).sum() % families.visual_tokens(config.model) == 0
  assert batch['loss_weight'].sum() > 0


def test_images_are_read_as_the_parent_was_trained(released, monkeypatch):
  argument = f'{released}/my.jsonl,{released}/checkpoint'
  assert forkme.get_config(argument).image.alpha == 'drop'  # Imported weights have no such setting.
  parent = forkme.bundle.load_bundle(released / 'checkpoint')
  with parent.config.unlocked():
    parent.config.image = {'alpha': 'white'}
  monkeypatch.setattr(forkme.bundle, 'load_bundle', lambda checkpoint: parent)
  assert forkme.get_config(argument).image.alpha == 'white'


def test_a_config_without_a_tokenizer_and_a_parent_is_refused(released):
  config = forkme.get_config(f'{released}/my.jsonl,{released}/checkpoint')
  with config.unlocked():
    config.init_from = None
  with pytest.raises(errors.SphinxError, match='neither a tokenizer nor init_from'):
    run.open_data(config)


def test_a_row_has_room_for_as_many_images_as_are_asked_for(released):
  config = forkme.get_config(f'{released}/my.jsonl,{released}/checkpoint')
  one = config.batch.seq_len
  config.batch.images = 3
  assert config.batch.seq_len - 512 == 3 * (one - 512)


@pytest.fixture(scope='module')
def preference(released):
  """The config of DPO on pairs of which the second lacks an answer."""
  image = str(GOLDEN / 'preproc/f_1x1.png')
  pair = {'prompt': 'What is this?', 'chosen': 'A cat.', 'rejected': 'Two dogs.', 'images': [image]}
  bad = {**pair, 'rejected': None}
  (released / 'pairs.jsonl').write_text(f'{json.dumps(pair)}\n{json.dumps(bad)}\n')
  return forkme.get_config(f'{released}/pairs.jsonl,{released}/checkpoint,dpo')


def test_peek_shows_both_answers_of_a_pair(preference):
  config = peek.narrowed(preference, None, None)
  _, (chosen, rejected, *_) = peek.peek(config, 1)
  for (example, views), kind, text in (
    (chosen, 'chosen', 'A cat.'),
    (rejected, 'rejected', 'Two dogs.'),
  ):
    assert example.task == f'mine ({kind})' and example.slots == (0,) and views
    trained = ''.join(part for part, is_trained in example.runs if is_trained)
    assert trained.strip().removesuffix('\n###') == text


def test_a_plan_of_dpo_counts_the_pass_of_the_reference(preference):
  def planned(config):
    tpu_slice = slices.find('v5e:1x1')
    return plan.Planner(run.Program).plan(config, tpu_slice, compile_it=False)

  settings = preference.to_dict()
  del settings['preference']
  dpo, lora = planned(preference), planned(ConfigDict(settings))
  assert 'DOES NOT FIT' not in sheet.text(dpo)
  # Forward and backward by the hidden states, and forward without a gradient.
  assert 1.2 < dpo.flops.parts['llm'] / lora.flops.parts['llm'] < 1.5
