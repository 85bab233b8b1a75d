"""Checkpoints in few bits: written, loaded, widened, and refused where full kernels are needed."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import convert, few_bits, run
from sphinx_jax.checkpoint import adapter_runs, mixing, store, stream
from sphinx_jax.checkpoint.bundle import load_bundle
from sphinx_jax.core import cli, errors, trees
from sphinx_jax.evaluation import agreement
from sphinx_jax.models import quantized
from tests.generate import golden, small
from tests.generate.test_adapters import logits


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A checkpoint, and that of a run with adapters on it."""
  return small.save_base_and_adapter(tmp_path_factory.mktemp('runs'))


@pytest.fixture(scope='module')
def held(folders, tmp_path_factory):
  """Form -> a checkpoint in it, made of the first of `folders`."""
  places = {}
  for form in quantized.STORED:
    places[form] = tmp_path_factory.mktemp('held') / form
    few_bits.quantize(few_bits.open_full(folders[0]), places[form], form)
  return places


def params(*given, **options):
  return trees.flatten(sphinx_jax.load(*given, **options).params)


def assert_same(first, second):
  assert set(first) == set(second)
  for path, leaf in first.items():
    assert leaf.dtype == second[path].dtype
    np.testing.assert_array_equal(leaf, second[path], err_msg=path)


@pytest.mark.parametrize('form', quantized.STORED)
def test_a_checkpoint_in_few_bits_is_what_loading_makes_of_the_full_one(folders, held, form):
  assert load_bundle(held[form]).weights == form
  assert_same(params(held[form]), params(folders[0], weights=form))
  if form == 'int8':
    assert_same(
      params(held[form], weights='int8_dynamic'), params(folders[0], weights='int8_dynamic')
    )


def test_one_matrix_at_a_time_is_read(folders, tmp_path):
  full, read = few_bits.open_full(folders[0]), {}

  def watched(path, array):
    def part(index):
      read.setdefault(path, []).append(index)
      return array.read(index)

    return stream.Array(array.shape, array.dtype, part, array.layers)

  arrays = {path: watched(path, array) for path, array in full.arrays.items()}
  few_bits.quantize(full._replace(arrays=arrays), tmp_path / 'held', 'int8')
  assert read['llm/layers/feed_forward/w1/kernel'] == [(0,), (1,)]
  assert all(len(indices) == len(set(indices)) for indices in read.values())


def test_its_logits_have_the_bits_of_those_quantized_on_the_fly(folders, held):
  np.testing.assert_array_equal(logits(held['int8']), logits(folders[0], weights='int8'))


def test_it_is_sharded_over_a_mesh(held):
  model = sphinx_jax.load(held['nf4'], mesh='fsdp')
  assert_same(trees.flatten(model.params), params(held['nf4']))
  assert len(model.params['llm']['layers']['attention']['wq']['nf4'].sharding.device_set) == 8


def test_adapters_of_either_checkpoint_fit_both(folders, held, tmp_path):
  base, adapter = folders
  on_the_fly = params(base, adapter=adapter, weights='int8')
  assert_same(params(held['int8'], adapter=adapter), on_the_fly)
  meta = store.load_meta(adapter) | adapter_runs.base(held['int8'])
  adapter_runs.check_base(meta, adapter, base)
  other = small.save(tmp_path / 'other', note=1)
  with pytest.raises(errors.SphinxError, match='got other weights'):
    adapter_runs.check_base(meta, adapter, other)


def test_foreign_weights_become_few_bits(tmp_path, capsys):
  folder = golden.FOLDER / 'models' / 'llama_ens_light' / 'mp1'
  full = convert.full_weights(convert.open_sources([folder]))
  few_bits.quantize(full, None, 'int4', dry_run=True)
  planned = capsys.readouterr().out
  few_bits.quantize(full, tmp_path / 'held', 'int4')
  assert capsys.readouterr().out == planned
  assert_same(params(tmp_path / 'held'), params(folder, weights='int4'))
  kernels, rest, total = (line.split()[-3:] for line in planned.splitlines()[1:])
  assert 0.125 < float(kernels[2]) < 0.16 and rest[2] == '1.000'
  assert float(kernels[2]) < float(total[2]) < 1


def test_losses_are_compared_on_scenes_and_on_a_file(folders, tmp_path, capsys):
  records = agreement.examples('miniworld')
  assert sum(bool(record.images) for record in records) >= 10
  few_bits.quantize(few_bits.open_full(folders[0]), tmp_path / 'held', 'int8', 'miniworld')
  full, few = (line.split() for line in capsys.readouterr().out.splitlines()[-2:])
  assert full[0] == 'full' and few[0] == 'int8'
  assert 0 < abs(float(few[1]) - float(full[1])) < 0.02 * float(full[1])
  assert float(few[2].rstrip('%')) > 60

  turns = [{'from': 'human', 'value': 'red?'}, {'from': 'gpt', 'value': 'blue'}]
  file = tmp_path / 'my.jsonl'
  file.write_text(json.dumps({'conversations': turns}) + '\n')
  (record,) = agreement.examples(str(file))
  assert record.turns == (('red?', 'blue'),)
  file.write_text(json.dumps({'images': ['a.png', 'b.png'], 'conversations': turns}) + '\n')
  refused('no example', agreement.examples, str(file))


def test_a_mix_widens_to_bfloat16(folders, held, tmp_path):
  base, adapter = folders
  mixing.mix_checkpoints([held['int8']], (1.0,), tmp_path / 'wide')
  wide = trees.flatten(store.load_params(tmp_path / 'wide'))
  assert load_bundle(tmp_path / 'wide').weights == ''
  full = trees.flatten(store.load_params(base))
  assert set(wide) == set(full)
  codes = params(held['int8'])
  layer = 'llm/layers/attention/wq'
  expected = [
    quantized.widen({name: codes[f'{layer}/{name}'][i] for name in ('int8', quantized.SCALE)})
    for i in range(2)
  ]
  assert wide[f'{layer}/kernel'].dtype == jnp.bfloat16
  np.testing.assert_array_equal(wide[f'{layer}/kernel'], jnp.stack(expected).astype(jnp.bfloat16))
  np.testing.assert_array_equal(wide['llm/output/kernel'], full['llm/output/kernel'])

  mixing.mix_checkpoints([f'{held["int8"]}+{adapter}'], (1.0,), tmp_path / 'merged')
  merged = trees.flatten(store.load_params(tmp_path / 'merged'))
  names = ('lora_a', 'lora_b', 'lora_scale')
  a, b, scale = (stream.read(adapter)[f'{layer}/{name}'].read(()) for name in names)
  sums = jnp.stack(expected) + scale[:, None, None] * np.einsum('lir,lro->lio', a, b)
  np.testing.assert_allclose(merged[f'{layer}/kernel'].astype(jnp.float32), sums, rtol=2**-8)


def refused(words, action, *given, **options):
  with pytest.raises(errors.SphinxError, match=words):
    action(*given, **options)


def test_what_needs_full_kernels_is_refused_with_what_to_do(folders, held, tmp_path):
  place, new = held['int8'], tmp_path / 'new'
  refused('adapters alone.*BASE.ADAPTER', few_bits.open_full, folders[1])
  refused(
    'kernels in int8, expected full', few_bits.quantize, few_bits.open_full(place), new, 'nf4'
  )
  refused('kernels in int8.*mix_weights', convert.export_checkpoint, place, new, 'official')
  refused("kernels in int8.*hold them in 'nf4'", sphinx_jax.load, place, weights='nf4')
  refused('kernels in int8.*,qlora', cli.load_config, f'forkme:my.jsonl,{place}')
  config = cli.load_config(f'forkme:my.jsonl,{place},qlora')
  assert run.training_run(config, None).frozen_dtype == 'int8'
