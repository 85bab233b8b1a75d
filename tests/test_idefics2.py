"""Idefics2 as users tune it: their JSONL file, a converted release, the same commands."""

import contextlib
import itertools
import json
import re

import numpy as np
import pytest
from PIL import Image

import sphinx_jax
from sphinx_jax import convert, peek, run, train
from sphinx_jax.configs import forkme
from sphinx_jax.core import batch as batch_contract
from sphinx_jax.models import families
from sphinx_jax.parallel import placement
from tests.models import idefics2_golden as golden

PATCHES = 'model.vision.patches_per_row'
COLORS = {'red': (250, 0, 0), 'blue': (0, 0, 250)}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A converted release, and images of their own shapes with questions about them."""
  folder = tmp_path_factory.mktemp('idefics2')
  convert.import_checkpoint(
    convert.open_sources([golden.FOLDER / 'model']), str(folder / 'release')
  )
  lines = []
  for i in range(24):
    color = list(COLORS)[i % 2]
    name = f'{i}.png'
    Image.new('RGB', (40 + 5 * i, 90 - 3 * i), COLORS[color]).save(folder / name)
    question, names = 'What color?' + ' Say it.' * (i % 3), [name]
    if i % 4 == 3:  # Of two images.
      question, names = 'What color has <image>, after\n<image>', [name, f'{i - 1}.png']
    turns = [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': color}]
    lines.append(json.dumps({'image': names, 'conversations': turns}) + '\n')
  (folder / 'my.jsonl').write_text(''.join(lines))
  return folder


def config(folder, split=False, **changes):
  config = forkme.get_config(f'{folder}/my.jsonl,{folder}/release').copy_and_resolve_references()
  with config.unlocked():
    config.update_from_flattened_dict(
      {
        'steps': 6,
        'optimizer.warmup': 1,
        'optimizer.lr': 1e-2,
        'batch.size': 8,
        'batch.seq_len': 96,
        'batch.images': 10 if split else 2,
        'batch.window': 24,
        'eval_every': 0,
        'checkpoint.every': 3,
        'log_every': 1,
        'mesh.data': 1,
        'mesh.fsdp': 1,
        'model.slots.split': split,
        PATCHES: 0,
        **changes,
      }
    )
    config.validation = {}
  return config.lock()


def first_batch(config):
  data = run.open_data(config)
  batches = data.batches()
  batch, _ = next(batches)
  batches.close()
  return batch


@pytest.mark.parametrize('split', [False, True])
def test_rows_hold_images_of_their_own_shapes(folder, split):
  settings = config(folder, split)
  batch = first_batch(settings)
  batch_contract.check(batch, families.visual_tokens(settings.model))
  sizes = batch['image_size'].reshape(-1, 2)
  used = sizes[sizes.any(axis=1)]
  pairs = [
    (row == segment) & (index >= 0)
    for row, index in zip(batch['segments'], batch['visual_index'])
    for segment in range(1, row.max() + 1)
  ]
  assert {at.sum() for at in pairs} == {4 * 5, 4 * 10} if split else {4, 8}
  assert used.min() >= 42 and used.max() <= 98 and len({*map(tuple, used)}) > 3
  assert (batch['visual_index'] >= 0).sum() == 4 * len(used)
  images = batch['images'].reshape(-1, 98, 98, 3)[sizes.any(axis=1)]
  for image, (height, width) in zip(images, used):
    assert image[:height, :width].any(axis=-1).all() and not image[height:].any()
    assert not image[:, width:].any()


def test_rows_have_four_images_or_the_patches_of_the_largest(folder):
  settings = forkme.get_config(f'{folder}/my.jsonl,{folder}/release')
  assert settings.batch.images == 4 and settings.model.vision.patches_per_row == 4 * 32 >= 7 * 7
  settings.batch.images = 8
  assert settings.model.vision.patches_per_row == 8 * 32
  batch = first_batch(settings)
  assert batch['images'].shape[1] == 8
  assert (batch['image_size'] // 14).prod(axis=-1).sum(axis=-1).max() <= 8 * 32


@pytest.mark.parametrize('split', [False, True])
def test_rows_keep_to_their_patches(folder, split):
  """Images of more patches than a row has are skipped and counted."""
  limit = 70 if split else 24
  settings = config(folder, split, **{PATCHES: limit, 'batch.images': 20, 'batch.seq_len': 256})
  data = run.open_data(settings)
  with contextlib.closing(data.batches(0)) as batches:
    rows = [row for batch, _ in itertools.islice(batches, 4) for row in batch['image_size'] // 14]
  patches = np.prod(rows, axis=-1).sum(axis=-1)
  assert 0.8 * limit < max(patches) <= limit
  assert re.findall('skipped .* examples of mine: (.*)', data.summary(0)) == ['too many patches']


def test_packed_rows_give_the_logits_of_single_examples(folder):
  settings = config(folder, True, **{'batch.seq_len': 192})
  batch = first_batch(settings)
  model, params = families.build(settings.model), golden.params()
  hidden, (matrix,), _ = families.apply(model, params, batch)
  logits = np.asarray(hidden @ matrix)
  loaded = sphinx_jax.load(folder / 'release')
  row = int(np.argmax((batch['segments'] > 1).any(axis=1)))
  assert batch['segments'][row].max() > 1
  for segment in range(1, batch['segments'][row].max() + 1):
    at = np.flatnonzero(batch['segments'][row] == segment)
    index = batch['visual_index'][row, at]
    ids = np.where(index >= 0, golden.IMAGE, batch['tokens'][row, at])
    slots = sorted({i // 4 for i in index if i >= 0})
    alone = [
      batch['images'][row, slot, : size[0], : size[1]]
      for slot in slots
      for size in batch['image_size'][row, slot : slot + 1]
    ]
    loaded.slot_rule = type(loaded.slot_rule)(1, 98)  # The slots are resized already.
    single = loaded.logits(ids[None], [alone])[0]
    np.testing.assert_allclose(logits[row, at], single, atol=1e-4)


def test_peek_shows_the_text_the_mask_and_the_image_as_it_is(folder):
  settings = config(folder)
  _, shown = peek.peek(settings, 1)
  example, views = shown[0]
  ((caption, pixels),) = views
  assert caption == f'{pixels.shape[2]} x {pixels.shape[1]} pixels'
  trained = ''.join(text for text, is_label in example.runs if is_label)
  assert trained.strip().removesuffix('<end_of_utterance>') in COLORS, example.runs


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [line['loss'] for line in lines if 'loss' in line]


def test_tuning_is_the_same_with_packed_images_on_any_mesh_and_after_a_stop(
  folder, tmp_path, monkeypatch
):
  train.train(config(folder), tmp_path / 'one')
  on_mesh = dict.fromkeys(('mesh.data', 'mesh.fsdp', 'mesh.tensor'), 2)
  train.train(config(folder, **on_mesh, **{PATCHES: 98}), tmp_path / 'mesh')
  put, calls = placement.put, []

  def fail_once(*arguments):
    calls.append(arguments)
    if len(calls) == 5:
      raise RuntimeError('stopped')
    return put(*arguments)

  monkeypatch.setattr(placement, 'put', fail_once)
  with pytest.raises(RuntimeError, match='stopped'):
    train.train(config(folder), tmp_path / 'resumed')
  train.train(config(folder), tmp_path / 'resumed')
  one = losses(tmp_path / 'one')
  assert len(one) == 6 and one[-1] < 0.7 * one[0]
  assert losses(tmp_path / 'resumed') == one
  np.testing.assert_allclose(losses(tmp_path / 'mesh'), one, rtol=2e-4)
  tuned = sphinx_jax.load(tmp_path / 'one')
  assert tuned.template.style == 'idefics2'
  image = np.full((50, 60, 3), COLORS['red'], np.uint8)
  assert isinstance(tuned.chat([('<image>What color?', None)], image, max_new_tokens=3), str)
