"""Folders that we write, loaded by HF transformers itself: the same logits, and its processor."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

import sphinx_jax
from sphinx_jax import convert
from sphinx_jax.checkpoint.foreign import safetensors
from tests.models import idefics2_golden as golden

MESSAGES = [
  {'role': 'user', 'content': [{'type': 'image'}, {'type': 'text', 'text': 'What is this?'}]}
]


@functools.cache
def transformers():
  """The package, whose import takes seconds."""
  import transformers

  return transformers


def check(folder, ours):
  """Asks transformers' model and our own the same question about an image."""
  model = transformers().Idefics2ForConditionalGeneration.from_pretrained(folder)
  processor = transformers().AutoProcessor.from_pretrained(folder)
  text = processor.apply_chat_template(MESSAGES, add_generation_prompt=True)
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
