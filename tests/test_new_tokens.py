"""Runs that add tokens to the vocabulary of their weights, with batches made in memory."""

import json
import pathlib

import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import convert, run, train
from sphinx_jax.checkpoint import bundle, mixing, store
from sphinx_jax.core import errors, trees
from sphinx_jax.models import families
from sphinx_jax.planning import leaves
from tests.generate.small import tokenizer
from tests.models import small
from tests.test_lora import LORA
from tests.tiny import crash, in_memory, lines, make_batch, tiny

TOKENS = ('<loc_0000>', '<loc_0001>', '<loc_0002>')
OLD = 320  # Tokens of `tokenizer`.
NEW = OLD + len(TOKENS)


def batch_at(config, position: int) -> dict:
  """A batch in which the new tokens, if there are some, stand for ids 5 to 7."""
  batch = make_batch(config, position)
  if config.get('tokenizer_add'):
    for field in ('tokens', 'targets'):
      ids = batch[field]
      batch[field] = np.where((ids >= 5) & (ids < 8), ids - 5 + OLD, ids)
  return batch


def data(spoil=lambda position, batch: batch):
  """Data of `batch_at`, whose bundle has the tokenizer of the run."""

  def open_data(config, local_rows=None):
    opened = in_memory(lambda at, _: spoil(at, batch_at(config, at)))(config, local_rows)
    own = run.open_tokenizer(config)
    carried = bundle.Bundle(config, own.model_bytes, {'system': ''}, own.added, own.ids)
    return opened._replace(bundle=carried, validation=dict)

  return open_data


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  monkeypatch.setattr(run, 'open_data', data())


def grown(base: pathlib.Path, lora: bool, **changes):
  """The config of a run that adds tokens to a base."""
  config = tiny(**{'optimizer.name': 'adamw', 'model.llm.vocab': OLD + 8, 'init_from': str(base)})
  with config.unlocked():
    config.update(tokenizer='', tokenizer_add=TOKENS)
    if lora:
      config.update(
        lora=LORA | {'target': 'llm/.*'}, trainable=(('.*/lora_[ab]', 'train'), ('.*', 'frozen'))
      )
    config.update_from_flattened_dict(changes)
  return config


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[str, pathlib.Path]:
  """A base whose tables have 8 rows of padding, and two runs on it that add tokens."""
  folder = tmp_path_factory.mktemp('runs')
  places = {name: folder / name for name in ('base', 'adapter', 'full')}
  config = tiny(**{'model.llm.vocab': OLD + 8})
  carried = bundle.Bundle(config, tokenizer().model_bytes, {'system': ''})
  with store.Store(places['base']) as saver:
    weights = small.weights(families.abstract_params(config.model))
    saver.save(1, weights, None, carried.to_meta())
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'open_data', data())
    train.train(grown(places['base'], lora=True), places['adapter'])
    train.train(grown(places['base'], lora=False, steps=2), places['full'])
  return places


def params(place) -> dict[str, np.ndarray]:
  return {path: np.asarray(leaf) for path, leaf in trees.flatten(store.load_params(place)).items()}


def test_beside_adapters_the_new_rows_alone_are_trained(runs):
  base, saved = params(runs['base']), params(runs['adapter'])
  assert 'llm/embed' not in saved and 'llm/output/kernel' not in saved
  embed, output = saved['llm/embed_new'], saved['llm/output_new'].T
  assert embed.shape == output.shape == (3, 16) and embed.dtype == np.float32
  for rows, old in ((embed, base['llm/embed']), (output, base['llm/output/kernel'].T)):
    away = np.abs(rows - old[:OLD].mean(axis=0))
    assert 0 < away.max() < 0.1 and np.abs(rows[0] - rows[1]).max() > 0
  written = [line['loss'] for line in lines(runs['adapter']) if 'loss' in line]
  assert written[-1] < written[0]


def test_the_plan_counts_the_new_rows(runs):
  program = run.Program(run.training_run(grown(runs['base'], lora=True), None))
  found = [leaf for leaf in leaves.resident_leaves(program) if '/embed' in leaf.path]
  assert sorted((leaf.kind, leaf.shape, leaf.dtype) for leaf in found) == [
    ('frozen', (OLD, 16), 'float32'),
    ('optimizer', (3, 16), 'float32'),
    ('optimizer', (3, 16), 'float32'),
    ('trained', (3, 16), 'float32'),
  ]


def test_new_rows_begin_as_the_mean_of_the_old_ones(runs):
  old = params(runs['base'])['llm/embed'][:OLD]
  for lora in (False, True):
    program = run.Program(run.training_run(grown(runs['base'], lora), None))
    llm = program.load(runs['base'])['llm']
    rows = llm['embed_new'] if lora else llm['embed'][OLD:]
    np.testing.assert_allclose(rows, np.repeat(old.mean(axis=0)[None], 3, 0), rtol=1e-6, atol=1e-8)
    np.testing.assert_array_equal(llm['embed'][:OLD], old)


def test_a_merged_adapter_is_the_model_of_the_adapter(runs, tmp_path):
  place = f'{runs["base"]}+{runs["adapter"]}'
  mixing.mix_checkpoints([place], (1.0,), tmp_path / 'merged')
  merged, model = sphinx_jax.load(tmp_path / 'merged'), sphinx_jax.load(runs['adapter'])
  for one in (merged, model):
    assert one.config.llm.vocab == one.tokenizer.vocab_size == NEW
    assert OLD + 1 in one.tokenizer.encode('at <loc_0001> end')
  embeddings = [np.asarray(one.params['llm']['embed']) for one in (merged, model)]
  np.testing.assert_array_equal(*embeddings)
  trained = params(runs['adapter'])
  np.testing.assert_array_equal(merged.params['llm']['embed'][OLD:], trained['llm/embed_new'])
  for one in (merged, model):  # The adapter of the LM head has no part in the new tokens.
    kernel = np.asarray(one.params['llm']['output']['kernel'])
    np.testing.assert_array_equal(kernel[:, OLD:], trained['llm/output_new'])


def test_a_broken_run_resumes_bit_for_bit(runs, tmp_path, monkeypatch):
  def break_off(position, batch):
    if position == 4:
      crash()
    return batch

  monkeypatch.setattr(run, 'open_data', data(break_off))
  with pytest.raises(RuntimeError, match='as if killed'):
    train.train(grown(runs['base'], lora=True), tmp_path)
  monkeypatch.setattr(run, 'open_data', data())
  train.train(grown(runs['base'], lora=True), tmp_path)
  assert lines(tmp_path) == lines(runs['adapter'])
  found, expected = params(tmp_path), params(runs['adapter'])
  assert found.keys() == expected.keys()
  for path, leaf in found.items():
    np.testing.assert_array_equal(leaf, expected[path])


@pytest.mark.slow  # Compiles two updates. Stand-in: that of adapters alone, in test_lora.py.
def test_eight_devices_give_the_losses_of_one(runs, tmp_path):
  written = []
  for name, size in (('one', 1), ('eight', 2)):
    config = grown(runs['base'], lora=True, steps=2, log_every=1)
    config.lora.update(dropout=0.0, neftune=0.0)
    config.mesh.update(data=size, fsdp=size, tensor=size)
    train.train(config, tmp_path / name)
    written.append(lines(tmp_path / name))
  assert len(written[0]) == 2
  for line, expected in zip(*written):
    assert line == pytest.approx(expected, rel=2e-4)


def test_full_tuning_grows_the_tables_themselves(runs):
  saved, model = params(runs['full']), sphinx_jax.load(runs['full'])
  assert saved['llm/embed'].shape == (NEW, 16) and saved['llm/output/kernel'].shape == (16, NEW)
  assert model.tokenizer.encode('<loc_0000><loc_0002>')[-2:] == [OLD, OLD + 2]
  assert model.tokenizer.decode([OLD]) == '<loc_0000>'


def test_peft_holds_no_new_tokens_and_the_merged_model_does(runs, tmp_path):
  with pytest.raises(errors.SphinxError, match='llm/embed_new, .*the tokens of its base.*--to=hf'):
    convert.export_adapter(runs['adapter'], tmp_path / 'peft')
  place = f'{runs["base"]}+{runs["adapter"]}'
  convert.export_checkpoint(place, tmp_path / 'hf', 'hf')
  ours, released = sphinx_jax.load(place), sphinx_jax.load(tmp_path / 'hf')
  ids = ours.tokenizer.encode('red <loc_0001> circle')
  assert OLD + 1 in ids and released.tokenizer.encode('red <loc_0001> circle') == ids
  logits = [model.logits(np.array([ids]), [[]]) for model in (ours, released)]
  assert logits[0].shape[-1] == NEW
  np.testing.assert_allclose(*logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    ('loc.txt', '\ufeff' + '\n'.join(TOKENS) + '\n\n', None),
    ('loc.json', json.dumps(TOKENS), None),
    ('loc.json', '{"<loc_0000>": 320}', 'got other JSON, expected a JSON list'),
    ('loc.json', '[', 'expected a JSON list'),
    ('loc.txt', '\n', 'got no token'),
    ('loc.txt', 'two words\n', "'two words', expected characters that are no"),
    ('', '', 'got No such file or directory'),
  ],
)
def test_a_file_of_tokens_is_the_list_of_them(runs, tmp_path, name, content, words):
  if name:
    (tmp_path / name).write_text(content)
  file = str(tmp_path / (name or 'none.txt'))
  config = grown(runs['base'], lora=True, tokenizer_add=('<first>', file))
  if words:
    with pytest.raises(errors.SphinxError, match=words):
      run.training_run(config, None)
  else:
    complete = run.training_run(config, None)
    assert complete.tokenizer_add == ('<first>', *TOKENS)
    assert complete.model.llm.vocab == NEW + 1


def test_another_vocabulary_is_not_mixed(runs, tmp_path):
  words = "base': got another tokenizer .it lacks 3: '<loc_0000>', '<loc_0001>', '<loc_0002>'"
  with pytest.raises(errors.SphinxError, match=words):
    mixing.mix_checkpoints([runs['full'], runs['base']], (0.5, 0.5), tmp_path / 'mix')


@pytest.mark.parametrize(
  ('lora', 'changes', 'words'),
  [
    (True, {'tokenizer_add': ('circle', '</s>')}, "'</s>', which the tokenizer has"),
    (True, {'tokenizer_add': ('<a>', '<a>')}, "'<a>', which is there twice"),
    (True, {'tokenizer_add': ('two words',)}, "'two words', expected characters that are no"),
    (True, {'tokenizer_add': (1,)}, 'tokenizer_add: got .*each a text'),
    (False, {'trainable': (('llm/embed', 'frozen'), ('.*', 'train'))}, "'frozen', expected rows"),
    (False, {'init_from': ''}, 'tokens for fresh weights'),
  ],
)
def test_what_cannot_be_is_refused(runs, tmp_path, lora, changes, words):
  with pytest.raises(errors.SphinxError, match=words):
    train.train(grown(runs['base'], lora, **changes).lock(), tmp_path)
