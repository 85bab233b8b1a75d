"""The recipe of Idefics2 at laptop size, shortened."""

import json

import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import recipe, run
from sphinx_jax.checkpoint.bundle import load_bundle
from sphinx_jax.configs import mini_idefics
from sphinx_jax.core import errors

SPECIALS = {'<fake_token_around_image>': 640, '<image>': 641, '<end_of_utterance>': 642}


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  """A finished run with few scenes, one short stage and questions about two images alone."""
  config = mini_idefics.get_config('quick').copy_and_resolve_references()
  with config.unlocked():
    config.steps = ('data', 'stage2', 'evaluate', 'report')
    config.update_from_flattened_dict(
      {
        'data.train': dict(objects=80, words=20, page=20, figure=20, text=100),
        'data.heldout': 8,
        'data.lines': 200,
        'stage2.init_from': None,
        'stage2.steps': 2,
        'stage2.batch.window': 64,
        'stage2.optimizer.name': 'adamw',  # Compiles faster.
        'evaluate.tasks': ('difference',),
      }
    )
    config.stage2.validation = {}
  workdir = tmp_path_factory.mktemp('mini_idefics')
  recipe.run_recipe(config, workdir)
  return workdir


def test_the_recipe_runs_to_its_report(workdir):
  results = json.loads((workdir / 'evaluate' / 'results.json').read_text())
  assert results['difference']['examples'] == 4
  page = (workdir / 'report.html').read_text()
  assert 'difference' in page
  assert 'Weight mix' not in page and 'several encoders' not in page
  losses = [json.loads(line) for line in (workdir / 'stage2' / 'metrics.jsonl').open()]
  assert any('loss/difference' in line for line in losses)


def test_special_tokens_come_behind_the_pieces_that_the_texts_taught(workdir):
  bundle = load_bundle(workdir / 'stage2')
  assert bundle.added_tokens == SPECIALS
  pieces = sphinx_jax.load(workdir / 'stage2').tokenizer
  assert pieces.vocab_size == bundle.config.model.llm.vocab == 643
  words = [pieces.decode([i]) for i in range(259, 640)]
  assert not any('image>' in word or 'utterance' in word or '<' in word for word in words)


def test_it_answers_about_two_images(workdir):
  model = sphinx_jax.load(workdir / 'stage2')
  images = [np.full((64, 64, 3), grey, np.uint8) for grey in (0, 255)]
  question = 'What differs between <image> and <image>?'
  assert isinstance(model.chat([(question, None)], images=images, max_new_tokens=4), str)
  with pytest.raises(errors.SphinxError, match='1 images and 2 <image> marks'):
    model.chat([(question, None)], images=images[:1])


def test_another_id_of_the_image_token_is_refused_before_training(workdir):
  stage = run.training_run(mini_idefics.get_config('quick'), 'stage1', workdir)
  stage = stage.copy_and_resolve_references()
  with stage.unlocked():
    stage.model.image_token = 640
  with pytest.raises(errors.SphinxError, match='<image> with id 641, expected id 640, which is'):
    run.open_data(stage)


def test_the_shipped_stages_fit_their_model_and_optimizer():
  for name in ('stage1', 'stage2'):
    stage = run.training_run(mini_idefics.get_config(), name)
    assert run.Program(stage).params['perceiver']['latents'].shape == (16, 128)


def test_an_unknown_word_is_told():
  with pytest.raises(errors.SphinxError, match="did you mean 'quick'"):
    mini_idefics.get_config('quik')
