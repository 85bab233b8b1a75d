"""Statistics of checkpoints, with the real model at a tiny width and batches in memory."""

import collections
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

import sphinx_jax
from sphinx_jax import mix_stats, run as run_lib
from sphinx_jax.checkpoint import merged, mixing, statistics, store, stream
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import errors, trees
from sphinx_jax.mix import weights
from sphinx_jax.models import families, layers
from tests import command, tiny
from tests.generate import small

FIELDS = ('tokens', 'visual_index', 'positions', 'segments', 'images', 'image_size')


def packed(config, position: int) -> dict:
  """Rows of `tiny.make_batch`, of which some hold two examples, and one a slot without an image."""
  batch = tiny.make_batch(config, position)
  last = batch['tokens'][:, 11:14].copy()
  for row in range(0, len(last), 2):
    batch['segments'][row, 11:14] = 2
    batch['positions'][row, 11:14] = range(3)
    batch['targets'][row, 10], batch['loss_weight'][row, 10] = 0, 0
  batch['loss_weight'] *= np.float32(0.5)  # What training gave the labels.
  batch['visual_index'][1] = -1
  batch['image_size'][1] = 0
  return batch


class Stream(tiny.Stream):
  def __next__(self):
    self._position += 1
    return packed(self._config, self._position - 1), self._position

  def __iter__(self):
    return self


def open_data(config, local_rows=None):
  assert config.tokenizer == '' and config.init_from
  validation = lambda: {
    name: [packed(config, 10**6 + i) for i in range(config.eval_batches)]
    for name in config.validation
  }
  return run_lib.Data(lambda position: Stream(config, position), validation, None, '', None)


@pytest.fixture
def data(monkeypatch):
  monkeypatch.setattr(run_lib, 'open_data', open_data)


def save(directory, config, params, **meta):
  with store.Store(directory) as run:
    run.save(3, params, None, {**Bundle(config, b'pieces', {}).to_meta(), **meta})


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """Two checkpoints, of one device and of eight, with the same weights."""
  folder = tmp_path_factory.mktemp('trained')
  params = families.init(tiny.tiny().model, jax.random.key(0))
  for name, mesh in (('one', 1), ('eight', 8)):
    save(folder / name, tiny.tiny(**{'mesh.fsdp': mesh, 'loss_chunk': 4}), params)
  return folder, params


def load(directory) -> dict[str, np.ndarray]:
  return {path: array.read(()) for path, array in stream.read(directory).items()}


def examples_of(batch: dict):
  """Yields every example of a batch with labels, alone in a batch of one row."""
  for row in range(len(batch['tokens'])):
    for segment in range(1, batch['segments'][row].max() + 1):
      own = {name: field[row : row + 1].copy() for name, field in batch.items()}
      is_own = own['segments'] == segment
      own['loss_weight'] = np.float32(is_own & (own['loss_weight'] > 0))
      own['segments'] = np.int32(is_own)
      if own['loss_weight'].any():
        yield own


def test_fisher_is_the_mean_of_squared_gradients_of_examples(trained, data, tmp_path):
  folder, params = trained
  mix_stats.measure(folder / 'one', 'fisher', tmp_path / 'fisher', batches=2)
  config = tiny.tiny()
  model = families.build(config.model)

  @jax.jit
  @jax.grad
  def gradient(params, batch):
    logits = model.apply({'params': params}, *(batch[name] for name in FIELDS))
    logs = jnp.take_along_axis(jax.nn.log_softmax(logits), batch['targets'][..., None], -1)[..., 0]
    return (batch['loss_weight'] * logs).sum()

  single = [x for at in range(2) for x in examples_of(packed(config, at))]
  squares = [jax.tree.map(jnp.square, gradient(params, example)) for example in single]
  expected = trees.flatten(jax.tree.map(lambda *x: sum(x) / len(x), *squares))
  found = load(tmp_path / 'fisher')
  assert set(found) == {path for path in expected if not path.startswith('encoders/')}
  for path, value in found.items():
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, expected[path], rtol=1e-3, atol=1e-7, err_msg=path)
  meta = store.load_meta(tmp_path / 'fisher')['statistics']
  assert meta['examples'] == len(single) == 2 * (7 + 3)
  assert meta['of']['identity'] == store.identity(folder / 'one') and meta['kind'] == 'fisher'
  assert meta['split'] == 'train' and meta['data'] == ['ocr', 'vqa']


def inputs_of_layers(config, params, batch) -> dict[str, np.ndarray]:
  """Path of a linear layer outside of the encoders -> its inputs [...,in]; stacks are apart."""
  found = {}

  def record(call, args, kwargs, context):
    is_call = isinstance(context.module, layers.Dense) and context.method_name == '__call__'
    if is_call and context.module.path[0] != 'encoders':
      found['/'.join(context.module.path)] = np.asarray(args[0])
    return call(*args, **kwargs)

  model = families.build(config.model, separate=True)
  with nn.intercept_methods(record):
    params = families.for_decoding(config.model, params)
    model.apply({'params': params}, *(batch[name] for name in FIELDS))
  return found


def test_grams_are_those_of_the_inputs_without_padding(trained, data, tmp_path):
  folder, params = trained
  mix_stats.measure(folder / 'one', 'gram', tmp_path / 'gram', batches=2)
  config, expected = tiny.tiny(), collections.defaultdict(int)
  batches = [packed(config, at) for at in range(2)]
  for batch in batches:
    for path, inputs in inputs_of_layers(config, params, batch).items():
      is_projection = path == 'visual_proj/linear'
      mask = batch['image_size'][..., 0] > 0 if is_projection else batch['segments'] > 0
      used = inputs[mask.reshape(-1) if is_projection else mask].reshape(-1, inputs.shape[-1])
      expected[path] += used.T @ used
  count = sum(batch['segments'].max(axis=1).sum() for batch in batches)
  found = load(tmp_path / 'gram')
  of_layers = {}
  for path, gram in found.items():
    layer = path.removesuffix('/kernel')
    if '/layers/' in layer:
      of_layers |= {layer.replace('layers', f'layers_{i}'): part for i, part in enumerate(gram)}
    else:
      of_layers[layer] = gram
  assert set(of_layers) == set(expected) and len(expected) == 2 + 2 * 7
  for path, gram in of_layers.items():
    np.testing.assert_allclose(gram, expected[path] / count, rtol=1e-4, atol=1e-5, err_msg=path)
  assert store.load_meta(tmp_path / 'gram')['statistics']['examples'] == count


@pytest.mark.parametrize('kind', statistics.KINDS)
def test_eight_devices_measure_what_one_does(trained, data, tmp_path, kind):
  folder, _ = trained
  for name in ('one', 'eight'):
    mix_stats.measure(folder / name, kind, tmp_path / name, batches=1, split='validation')
  one, eight = load(tmp_path / 'one'), load(tmp_path / 'eight')
  assert one.keys() == eight.keys()
  for path in one:
    np.testing.assert_allclose(one[path], eight[path], rtol=1e-3, atol=1e-6, err_msg=path)
  metas = [store.load_meta(tmp_path / name)['statistics'] for name in ('one', 'eight')]
  assert metas[0]['examples'] == metas[1]['examples'] and metas[0]['data'] == ['real']


def test_experts_have_information_but_no_grams(data, tmp_path, caplog):
  config = tiny.mixture()
  save(tmp_path / 'run', config, families.init(config.model, jax.random.key(0)))
  mix_stats.measure(tmp_path / 'run', 'gram', tmp_path / 'gram', batches=1)
  grams = load(tmp_path / 'gram')
  assert 'llm/layers/feed_forward/gate/kernel' in grams
  assert 'llm/layers/feed_forward/w1/kernel' not in grams
  assert 'experts have no Gram matrices and are mixed linearly: llm/layers/feed_forward/w1' in (
    caplog.text
  )


def refused(trained, tmp_path, **changes) -> str:
  arguments = dict(checkpoint=trained[0] / 'one', kind='gram', output=tmp_path / 'out')
  with pytest.raises(errors.SphinxError) as error:
    mix_stats.measure(**{**arguments, **changes})
  assert not (tmp_path / 'out').exists()
  return str(error.value)


def test_what_cannot_be_measured_is_refused(trained, data, tmp_path):
  config, nothing = tiny.tiny(), {'w': jnp.zeros(2)}
  save(tmp_path / 'bits', config, nothing, weights='int8')
  assert 'kernels in int8, expected kernels that were trained' in refused(
    trained, tmp_path, checkpoint=tmp_path / 'bits'
  )
  save(tmp_path / 'adapters', config, nothing, adapter_of={'path': 'x', 'identity': 'y'})
  assert 'a run that holds adapters alone' in refused(
    trained, tmp_path, checkpoint=tmp_path / 'adapters'
  )
  save(tmp_path / 'untested', tiny.tiny(validation=ConfigDict()), nothing)
  assert 'a config without validation sets' in refused(
    trained, tmp_path, checkpoint=tmp_path / 'untested', split='validation'
  )
  assert 'another model (llm.norm_eps' in refused(
    trained, tmp_path, config=tiny.tiny(**{'model.llm.norm_eps': 0.1})
  )
  (tmp_path / 'empty').mkdir()
  assert "expected a run's directory" in refused(trained, tmp_path, checkpoint=tmp_path / 'empty')


@pytest.fixture(scope='module')
def measured(tmp_path_factory):
  """Two checkpoints and statistics of them, drawn at random."""
  folder, config = tmp_path_factory.mktemp('measured'), tiny.tiny()
  shapes = trees.flatten(families.abstract_params(config.model))
  stacked = families.stacked(config.model)
  for number, name in enumerate('ab'):
    rng = np.random.default_rng(number)
    params = {path: rng.standard_normal(leaf.shape) for path, leaf in shapes.items()}
    save(folder / name, config, trees.unflatten(jax.tree.map(jnp.float32, params)), seed=number)
    source = merged.source_of(folder / name, store.load_meta(folder / name))
    for kind in statistics.KINDS:
      of_kind = statistics.shapes(kind, shapes, stacked)
      values = {}
      for path, shape in of_kind.items():
        if kind == 'gram' and not path.endswith('kernel') or path.startswith('encoders/'):
          continue
        rows = rng.standard_normal(shape).astype(np.float32)
        values[path] = rows @ rows.swapaxes(-1, -2) if kind == 'gram' else np.square(rows)
      if name == 'b':
        del values['visual_proj/linear/kernel']  # As if it were frozen in that run.
      with statistics.Writer(folder / f'{name}_{kind}', kind, source, values) as writer:
        for path, value in values.items():
          writer.write(path, value, ())
        writer.finish(examples=1)
  return folder


def mix(folder, output, method='regmean', kind='gram', names='ab', **arguments):
  places = [folder / f'{name}_{kind}' for name in names]
  inputs = arguments.pop('inputs', [folder / name for name in 'ab'])
  arguments = {'statistics': places, 'method': method, **arguments}
  mixing.mix_checkpoints(inputs, (0.4, 0.6), output, **arguments)
  return load(output)


@pytest.mark.parametrize('method, kind', [('fisher', 'fisher'), ('regmean', 'gram')])
def test_checkpoints_are_mixed_by_their_statistics(
  measured, tmp_path, monkeypatch, caplog, method, kind
):
  monkeypatch.setattr(mixing, '_PART_BYTES', 2048)  # Cuts leaves, as those of a 13B model are.
  if method == 'regmean':
    monkeypatch.setattr(mixing, '_TENSOR_BYTES', 2048)
  mixed = mix(measured, tmp_path / 'mix', method, kind)
  parents = [trees.unflatten(load(measured / name)) for name in 'ab']
  tables = [load(measured / f'{name}_{kind}') for name in 'ab']
  del tables[0]['visual_proj/linear/kernel']
  expected = weights.mix(
    parents,
    (0.4, 0.6),
    method=method,
    statistics=[trees.unflatten(table) for table in tables],
    stacked=families.stacked(tiny.tiny().model),
  )
  linear = trees.flatten(weights.mix(parents, (0.4, 0.6)))
  for path, leaf in trees.flatten(expected).items():
    np.testing.assert_allclose(mixed[path], leaf, rtol=1e-4, atol=1e-5, err_msg=path)
    assert np.allclose(mixed[path], linear[path], atol=1e-5) == (path not in tables[0]), path
  assert 'not all inputs have statistics of them: 1 parameters, such as visual_proj' in caplog.text
  meta = store.load_meta(tmp_path / 'mix')
  assert meta['method'] == method and meta['statistics'] == [
    store.identity(measured / f'{name}_{kind}') for name in 'ab'
  ]
  assert Bundle.from_meta(meta, '').config.model == tiny.tiny().model


@pytest.mark.parametrize(
  'arguments, message',
  [
    (
      dict(names='ba'),
      "those of '.*/b' at step 3, whose weights are others, expected those of inp",
    ),
    (dict(kind='fisher'), 'statistics of kind fisher, expected statistics of kind gram'),
    (dict(statistics=()), '0 places of statistics, expected gram statistics of each of 2 inputs'),
    (dict(method='linear'), 'got statistics, expected none'),
    (dict(options={'alpha': 2.0}), '--alpha: got 2, expected a number from 0 to 1'),
  ],
)
def test_statistics_that_do_not_fit_are_refused(measured, tmp_path, arguments, message):
  with pytest.raises(errors.SphinxError, match=message):
    mix(measured, tmp_path / 'mix', **arguments)
  assert not (tmp_path / 'mix').exists()


def test_checkpoints_are_no_statistics_and_statistics_no_checkpoints(measured, tmp_path):
  with pytest.raises(errors.SphinxError, match='a checkpoint of weights, expected statistics of'):
    mix(measured, tmp_path / 'mix', statistics=[measured / 'a', measured / 'b'])
  with pytest.raises(errors.SphinxError, match='without a readable config'):
    mix(measured, tmp_path / 'mix', inputs=[measured / 'a_gram', measured / 'b_gram'])
  with pytest.raises(errors.SphinxError, match='without a readable config'):
    mix_stats.measure(measured / 'a_gram', 'gram', tmp_path / 'out')


def test_the_commands_make_a_model_that_answers(tmp_path, capsys):
  turns = [{'from': 'human', 'value': 'What color?'}, {'from': 'gpt', 'value': 'red'}]
  (tmp_path / 'my.jsonl').write_text(f'{json.dumps({"conversations": turns})}\n' * 3)
  entry = dict(source='jsonl', path='my.jsonl', task='dialog', weight=1.0)
  config = tiny.tiny(**{'batch.seq_len': 64, 'batch.images': 0}).to_dict()
  config |= dict(data_dir=str(tmp_path), mixture=dict(mine=entry), validation={})
  del config['model']
  base = small.save(tmp_path / 'base', **config)
  run = lambda *words: command.run(capsys, *words)
  mix_command = ['mix_weights', f'--output={tmp_path / "other"}', f'--inputs={base},{base}']
  assert run(*mix_command, '--coefficients=0.5,0.6', '--unnormalized')[0] == 0
  for name in ('base', 'other'):
    code, _, log = run(
      'mix_stats',
      f'--checkpoint={tmp_path / name}',
      '--statistics=gram',
      '--batches=1',
      f'--output={tmp_path / name}_gram',
    )
    assert code == 0, log
  code, _, log = run(
    'mix_weights',
    f'--inputs={base},{tmp_path / "other"}',
    '--coefficients=0.5,0.5',
    '--method=regmean',
    '--alpha=0.8',
    f'--statistics={base}_gram,{tmp_path / "other"}_gram',
    f'--output={tmp_path / "mix"}',
  )
  assert code == 0, log
  model = sphinx_jax.load(tmp_path / 'mix')
  assert isinstance(model.chat([('What is the color?', None)], max_new_tokens=4), str)
  meta = store.load_meta(tmp_path / 'mix')
  assert meta['options'] == {'alpha': 0.8} and meta['method'] == 'regmean'
