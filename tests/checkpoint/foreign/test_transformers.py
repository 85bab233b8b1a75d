"""Folders that we write, loaded by HF transformers itself: the same logits, and its processor."""

import dataclasses
import functools
import shutil

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.numpy import load_file, save_file

import sphinx_jax
from sphinx_jax import convert
from sphinx_jax.checkpoint import bundle, store, stream
from sphinx_jax.checkpoint.foreign import card, mixing, safetensors
from sphinx_jax.models import families
from tests import grown
from tests.models import idefics2_golden as golden


def messages(question):
  return [{'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': question}]}]


@functools.cache
def transformers():
  """The package, whose import takes seconds."""
  import transformers

  return transformers


def check(folder, ours, question='What is this?'):
  """Asks transformers' model and our own the same question about an image."""
  model = transformers().Idefics2ForConditionalGeneration.from_pretrained(folder)
  processor = transformers().AutoProcessor.from_pretrained(folder)
  text = processor.apply_chat_template(messages(question), add_generation_prompt=True)
  image = Image.open(golden.FOLDER / 'images' / 'wide3to1.png')
  inputs = processor(text=[text], images=[[image]], return_tensors='pt')
  pixels = np.asarray(image.convert('RGB'))
  ids = ours.encode(text, pixels)
  assert inputs['input_ids'].tolist() == [ids]
  with torch.no_grad():
    theirs = model(**inputs).logits.numpy()
  np.testing.assert_allclose(ours.logits(np.array([ids]), [pixels]), theirs, atol=1e-4, rtol=0)
  return model


@pytest.fixture(scope='module')
def imported(tmp_path_factory):
  """A checkpoint of a released folder."""
  run = tmp_path_factory.mktemp('imported') / 'run'
  convert.import_checkpoint(convert.open_sources([golden.FOLDER / 'model']), str(run))
  return run


def test_an_imported_model_goes_back(imported, tmp_path, monkeypatch):
  write = functools.partial(safetensors.write_safetensors, shard_bytes=3e5)
  monkeypatch.setattr(safetensors, 'write_safetensors', write)
  convert.export_checkpoint(str(imported), str(tmp_path / 'back'), 'hf')
  assert len(list((tmp_path / 'back').glob('*.safetensors'))) > 2
  model = check(tmp_path / 'back', sphinx_jax.load(imported))
  assert model.generation_config.eos_token_id == [2, 514]


def retold(run, folder, **settings):
  """The same weights as a run of ours would leave them: not imported, with a tokenizer to carry."""
  meta = store.load_meta(run)
  carried = bundle.Bundle.from_meta(meta, run)
  config = carried.config.copy_and_resolve_references()
  with config.unlocked():
    config.init_from = str(run)
    config.model.update_from_flattened_dict(settings)
  arrays = stream.read(run)
  meta = dataclasses.replace(carried, config=config).to_meta()
  writer = stream.Writer(folder, {'params': arrays}, meta)
  for path, array in arrays.items():
    writer.write('params', path, array.read(()))
  writer.finish()
  return folder


def test_a_model_of_ours_goes_there(imported, tmp_path):
  """As after tuning: all configs are made anew. Any setting of the model is in them."""
  settings = {'slots.split': True, 'perceiver.eps': 1e-5, 'llm.rope_theta': 5e3, 'llm.window': 9}
  ours = retold(imported, tmp_path / 'ours', **settings)
  convert.export_checkpoint(str(ours), str(tmp_path / 'there'), 'hf')
  model = check(tmp_path / 'there', sphinx_jax.load(ours))
  assert model.generation_config.eos_token_id == [2, 514]
  assert model.generation_config.bad_words_ids == [[512], [513]]
  back = sphinx_jax.load(tmp_path / 'there')
  assert families.settings_of_weights(back.config) == families.settings_of_weights(
    sphinx_jax.load(ours).config
  )
  assert back.template == sphinx_jax.load(ours).template


def test_added_tokens_go_there(imported, tmp_path):
  ours = grown.write(imported, tmp_path / 'ours', ('<loc_0000>', '<loc_0001>'))
  convert.export_checkpoint(str(ours), str(tmp_path / 'there'), 'hf')
  model = check(
    tmp_path / 'there', sphinx_jax.load(ours), 'What is at <loc_0001><loc_0000>, and beside it?'
  )
  assert model.config.text_config.vocab_size == model.get_input_embeddings().num_embeddings == 517


def test_a_mix_of_folders_is_loaded_as_it_is(tmp_path):
  first, other = golden.FOLDER / 'model', tmp_path / 'other'
  shutil.copytree(first, other)
  for file in other.glob('*.safetensors'):
    half = {key: value / 2 for key, value in load_file(file).items()}
    file.unlink()
    save_file(half, file, metadata={'format': 'pt'})
  mix = mixing.mix_folders([first, other], (0.5, 0.5), tmp_path / 'mix')
  model = check(mix, sphinx_jax.load(mix))
  key = 'lm_head.weight'
  (released,) = [t[key] for t in map(load_file, first.glob('*.safetensors')) if key in t]
  np.testing.assert_allclose(model.lm_head.weight.detach(), 0.75 * released, rtol=1e-6)


def test_the_card_names_the_release_and_its_licence(tmp_path):
  source = tmp_path / 'models--owner--some-model' / 'snapshots' / 'abc'
  shutil.copytree(golden.FOLDER / 'model', source)
  (source / 'README.md').write_text('---\nlicense: apache-2.0\ntags: [x]\n---\n# Some model\n')
  convert.import_checkpoint(convert.open_sources([source]), str(tmp_path / 'run'))
  tuned = retold(tmp_path / 'run', tmp_path / 'tuned')
  for run in (tmp_path / 'run', tuned):
    convert.export_checkpoint(str(run), str(tmp_path / f'{run.name}-hf'), 'hf')
    data = ModelCard.load(tmp_path / f'{run.name}-hf' / 'README.md').data
    assert (data.license, data.base_model) == ('apache-2.0', ['owner/some-model'])
    assert data.library_name == 'transformers'
  (source / 'README.md').write_bytes(b'---\n: {\n---\n')
  assert card.licence(source) is None
