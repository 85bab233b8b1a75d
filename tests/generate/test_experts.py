"""A mixture of experts answers: cache, batch, 16-bit weights, a mesh, one program, predict."""

import functools
import json

import jax
import ml_collections
import ml_dtypes
import numpy as np
import pytest
from PIL import Image

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import batch
from sphinx_jax.data import dialog
from sphinx_jax.generate.model import Model
from sphinx_jax.models import families
from sphinx_jax.parallel import mesh as meshes, rules
from sphinx_jax.serving import engine as engines
from tests import command
from tests.generate import small
from tests.serving import small as serving

QUESTIONS = ['What is the color?', 'one two three', 'red', 'yes']


@functools.cache
def config():
  found = small.config(name='mixtral', hidden=24, experts=4, experts_per_token=2)
  del found.llm['multiple_of']
  return found


@functools.cache
def params():
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(np.float32),
    families.abstract_params(config()),
  )


def model(params):
  return Model(config(), params, small.tokenizer(), dialog.Template('Be brief.'), 32)


def dialogs(questions=QUESTIONS):
  return [[(question, None)] for question in questions]


@functools.cache
def answers():
  return model(params()).answers(dialogs(), small.images(4), max_new_tokens=6)


def test_cached_decoding_gives_the_logits_of_whole_passes():
  module, variables = families.build(config()), {'params': params()}
  tokens = np.random.default_rng(0).integers(3, 300, (2, 12)).astype(np.int32)
  fields = [batch.interleave(row, (), 0) for row in tokens]
  index = np.stack([index for _, index in fields])
  positions = np.broadcast_to(np.arange(12, dtype=np.int32), tokens.shape)
  images = np.zeros((2, 0, 16, 16, 3), np.uint8)
  whole = jax.jit(module.apply)(variables, tokens, index, positions, positions * 0 + 1, images)
  step = jax.jit(functools.partial(module.apply, method='decode'))
  cache = families.init_cache(config(), 2, 12)
  for at in range(12):
    part = slice(at, at + 1)
    logits, cache = step(
      variables, tokens[:, part], index[:, part], positions[:, part], None, cache
    )
    np.testing.assert_allclose(logits[:, 0], whole[:, at], atol=1e-4)
  assert step._cache_size() == 1  # Whatever experts the tokens chose.


def test_a_row_does_not_depend_on_its_neighbours():
  assert len(set(answers())) > 2  # Otherwise equality would prove little.
  for number in (0, 3):
    alone = model(params()).answers(
      dialogs(QUESTIONS[number : number + 1]),
      small.images(4)[number : number + 1],
      max_new_tokens=6,
    )
    assert alone == answers()[number : number + 1]


@pytest.mark.parametrize('preset', ['serving', 'experts'])
def test_answers_on_a_mesh_are_those_of_one_device(preset):
  mesh = meshes.make_mesh(**meshes.PRESETS[preset] | {'expert': 4 if preset == 'experts' else 1})
  found = rules.shardings(families.logical_axes(config()), params(), mesh)
  placed = jax.tree.map(jax.device_put, params(), found)
  for count in (4, 1):  # One row does not divide over the mesh.
    expected = answers()[:count]
    got = model(placed).answers(
      dialogs(QUESTIONS[:count]), small.images(4)[:count], max_new_tokens=6
    )
    assert got == expected


def test_weights_in_16_bits_answer_as_their_values():
  """On a CPU they are read as bits, and only those of chosen experts (models/narrow.py)."""
  half = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), params())
  wide = jax.tree.map(lambda leaf: leaf.astype(np.float32), half)
  few = dialogs(QUESTIONS[:2]), small.images(4)[:2]
  assert model(jax.device_put(half)).answers(*few, max_new_tokens=5) == model(wide).answers(
    *few, max_new_tokens=5
  )


def test_a_running_batch_serves_the_same_answers_and_compiles_nothing():
  """Requests come while others are answered, so that the experts of a step are always others."""
  served = engines.Engine(model(params()), 2, 192)
  served.warm_up()
  served.start()
  try:
    before = len(serving.compiled)
    pairs = zip(dialogs(), small.images(4))
    asked = [serving.Asked(served, turns, [pixels], 6) for turns, pixels in pairs]
    assert [one.wait() for one in asked] == answers()
    assert serving.compiled[before:] == []
  finally:
    served.stop()


def test_predict_labels_a_folder_of_images(tmp_path, capsys):
  carried = Bundle(
    ml_collections.ConfigDict({'model': config().to_dict()}),
    small.tokenizer().model_bytes,
    {'system': 'Be brief.'},
  )
  with store.Store(tmp_path / 'run') as saver:
    saver.save(7, params(), None, carried.to_meta())
  photos = tmp_path / 'photos'
  photos.mkdir()
  for number, pixels in enumerate(small.images(4)):
    Image.fromarray(pixels).save(photos / f'{number}.png')
  code, _, log = command.run(
    capsys,
    'predict',
    f'--checkpoint={tmp_path / "run"}',
    f'--input={photos}',
    f'--output={tmp_path / "out.jsonl"}',
    f'--prompt={QUESTIONS[0]}',
    '--max_new_tokens=6',
  )
  assert code == 0, log
  found = [json.loads(line)['answer'] for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
  asked = dialogs(QUESTIONS[:1] * 4)
  assert found == model(params()).answers(asked, small.images(4), max_new_tokens=6)
