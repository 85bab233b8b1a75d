"""Adapters, few bits and preference tuning of a mixture of experts, at a tiny width."""

import json

import numpy as np
import pytest

from sphinx_jax import convert, few_bits, run, train
from sphinx_jax.checkpoint import bundle, merged, store
from sphinx_jax.checkpoint.foreign import adapters as peft, native_adapters, safetensors
from sphinx_jax.configs import mini
from sphinx_jax.core import errors, trees
from sphinx_jax.models import adapters, families, quantized, stored
from tests import test_dpo
from tests.tiny import in_memory, lines, make_batch, mixture, run as tiny_run

LORA = test_dpo.LORA | dict(rank=2, alpha=4.0)
EXPERTS = 'llm/layers/feed_forward/w1'


def lora(base, form='nf4', mesh=(), **changes):
  """The config of a run with adapters."""
  config = mixture(dict(mesh), **changes).unlock()
  config.update(
    lora=LORA,
    frozen_dtype=form,
    trainable=(('.*/lora_[ab]', 'train'), ('.*', 'frozen')),
    init_from=str(base),
  )
  return config.lock()


@pytest.fixture(autouse=True)
def memory(monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A base and a run with adapters of its experts in nf4."""
  base, adapter = (tmp_path_factory.mktemp('runs') / name for name in ('base', 'adapter'))
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(run, 'open_data', in_memory())
    train.train(mixture(steps=2, eval_every=0), base)
    train.train(lora(base), adapter)
  return base, adapter


def test_metrics_have_the_balance_and_the_share_of_every_expert(runs):
  line = next(line for line in lines(runs[0]) if 'loss' in line)
  assert line['router/balance'] >= 1
  assert sum(line[f'router/share_{i}'] for i in range(4)) == pytest.approx(1)
  of_validation = [line for line in lines(runs[1]) if 'loss' not in line]
  assert of_validation and not any('router' in name for line in of_validation for name in line)


def test_experts_have_adapters_and_the_router_has_none(runs):
  saved = trees.flatten(store.load_params(runs[1]))
  assert saved[f'{EXPERTS}/lora_a'].shape == (2, 4, 16, 2)
  assert saved[f'{EXPERTS}/lora_b'].shape == (2, 4, 2, 8)
  np.testing.assert_array_equal(saved[f'{EXPERTS}/lora_scale'], np.full((2, 4), 2.0))
  assert all(np.any(leaf) for path, leaf in saved.items() if path.endswith(adapters.B))
  assert not any('/gate/' in path for path in saved)
  frozen = trees.flatten(run.Program(lora(runs[0])).state.frozen)
  assert frozen[f'{EXPERTS}/nf4'].shape == (2, 4, 8, 8)
  assert 'llm/layers/feed_forward/gate/kernel' in frozen


def states(config, params):
  module = families.build(config.model)
  return families.apply(module, trees.unflatten(params), make_batch(config, 3)).hidden_states


def test_a_merged_adapter_computes_as_the_one_beside_its_matrices(runs):
  base, adapter = runs
  config = lora(base, form='')
  beside = trees.flatten(store.load_params(base)) | trees.flatten(store.load_params(adapter))
  opened = merged.open_checkpoint(f'{base}+{adapter}')
  whole = {path: array.read(()) for path, array in opened.arrays.items()}
  a, b = (beside[f'{EXPERTS}/{name}'] for name in ('lora_a', 'lora_b'))
  expected = beside[f'{EXPERTS}/kernel'] + 2 * np.einsum('lxir,lxro->lxio', a, b)
  np.testing.assert_allclose(whole[f'{EXPERTS}/kernel'], expected, atol=1e-6)
  np.testing.assert_allclose(states(config, beside), states(config, whole), atol=2e-5)


@pytest.mark.parametrize('form', ['int8', 'nf4'])
def test_a_checkpoint_in_few_bits_computes_as_its_widened_weights(runs, tmp_path, form):
  base, _ = runs
  few_bits.quantize(few_bits.open_full(str(base)), tmp_path / form, form)
  held = trees.flatten(store.load_params(tmp_path / form))
  assert held[f'{EXPERTS}/{quantized.SCALE}'].shape == (2, 4, 1, 8)
  arrays = merged.open_checkpoint(tmp_path / form).arrays
  layer = arrays[f'{EXPERTS}/kernel']
  assert layer.shape == (2, 4, 16, 8)
  np.testing.assert_array_equal(layer.read((1,)), layer.read(())[1])
  np.testing.assert_array_equal(layer.read((1, 2, slice(0, 16))), layer.read(())[1, 2])
  wide = {path: leaf for path, leaf in held.items() if path in arrays}
  layers = stored.by_layer(held)
  for path, matrix in bundle.load_bundle(tmp_path / form).forms.items():
    wide[f'{path}/kernel'] = stored.merge(layers[path], matrix.stack)
  assert wide.keys() == arrays.keys()
  config = mixture()
  np.testing.assert_allclose(states(config, held), states(config, wide), atol=2e-5)


@pytest.mark.slow  # On one device in the run above, and on a mesh without adapters elsewhere.
def test_adapters_of_quantized_experts_learn_the_same_on_a_mesh(runs):
  base, _ = runs
  one = tiny_run(lora(base), run.Program(lora(base)).load(base), steps=3)
  config = lora(base, mesh=dict(fsdp=2, expert=2).items())
  many = tiny_run(config, run.Program(config).load(base), steps=3)
  np.testing.assert_allclose(many[0], one[0], rtol=1e-5)


def test_preferences_are_learned_by_adapters_of_experts(runs):
  config = lora(runs[0], **{'batch.seq_len': 64, 'batch.images': 2, 'steps': 20}).unlock()
  config.preference = dict(beta=1.0)
  params = run.Program(config.lock()).load(runs[0])
  names = ('loss', 'weight')
  losses, _ = tiny_run(config, params, steps=8, batch_at=test_dpo.batch_at, names=names)
  first, last = (loss / weight for loss, weight in (losses[0], losses[-1]))
  assert first == pytest.approx(np.log(2), rel=1e-4) and last < first


def test_an_adapter_of_experts_goes_to_peft_and_back(runs, tmp_path):
  base, adapter = runs
  convert.export_adapter(str(adapter), tmp_path / 'peft')
  config = json.loads((tmp_path / 'peft' / peft.CONFIG).read_text())
  tensors = safetensors.open_safetensors(tmp_path / 'peft' / peft.TENSORS)
  name = 'base_model.model.model.layers.1.block_sparse_moe.experts.3.w1.lora_A.weight'
  assert tensors[name].shape == (2, 16) and config['r'] == 2
  back = native_adapters.read(tmp_path / 'peft', base).unmerged()
  saved = trees.flatten(store.load_params(adapter))
  assert back.keys() == saved.keys()
  for path, array in back.items():
    np.testing.assert_array_equal(array.read(()), saved[path], err_msg=path)


def test_the_laptop_recipe_has_as_many_active_parameters_with_experts():
  dense, moe = (
    run.training_run(mini.get_config(arg), 'stage2').model for arg in ('', 'moe,siglip')
  )
  routers = 3 * 128 * 4  # The layers, the width and the experts.
  assert families.count_active(moe) == families.count_active(dense) + routers
  assert 'siglip' in moe.encoders and moe.llm.experts == 4
  for stage in ('real', 'synthetic', 'stage2'):
    config = run.training_run(mini.get_config('moe,quick'), stage)
    assert run.Program(config).state.trained['llm']['layers']['feed_forward']['gate']


def test_dropout_in_adapters_of_experts_is_refused(runs):
  config = lora(runs[0]).unlock()
  config.lora.dropout = 0.1
  with pytest.raises(errors.SphinxError, match='lora.dropout: got 0.1 with adapters of experts'):
    run.Program(config.lock()).trace()
