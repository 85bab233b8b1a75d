"""The update of a config computes the same on any mesh and with any way to save memory."""

import types

import jax
import numpy as np
import pytest

from sphinx_jax import run as run_lib
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import errors
from sphinx_jax.run import Program
from tests.tiny import run, tiny


@pytest.fixture(scope='module')
def params():
  return jax.tree.map(np.asarray, Program(tiny()).init())


@pytest.fixture(scope='module')
def one_device(params):
  return run(tiny(), params)


def assert_same(result, expected):
  """Compares losses, gradient norms and parameters up to the order of sums in float32."""
  np.testing.assert_allclose(result[0], expected[0], rtol=3e-6)
  for path, leaf in expected[1].items():
    np.testing.assert_allclose(result[1][path], leaf, atol=3e-6, err_msg=path)


def mesh(data, fsdp, tensor):
  return {'mesh.data': data, 'mesh.fsdp': fsdp, 'mesh.tensor': tensor}


# (2, 2, 2) splits what the slow ones split.
@pytest.mark.parametrize(
  'sizes',
  [
    (2, 2, 2),
    (1, -1, 1),
    pytest.param((8, 1, 1), marks=pytest.mark.slow),
    pytest.param((2, 4, 1), marks=pytest.mark.slow),
  ],
)
def test_any_mesh_gives_the_losses_and_parameters_of_one_device(one_device, params, sizes):
  assert_same(run(tiny(**mesh(*sizes)), params), one_device)


def test_kept_features_give_the_same_on_a_mesh(one_device, params, tmp_path):
  changes = {'cache_features': str(tmp_path), 'optimizer.accumulate': 2}
  assert_same(run(tiny(**mesh(2, 2, 2), **changes), params), one_device)
  assert list(tmp_path.glob('*/*.safetensors'))


def test_muon_gives_the_same_on_a_mesh_as_on_one_device(params):
  muon = {'optimizer.name': 'muon'}
  assert_same(run(tiny(**mesh(2, 2, 2), **muon), params), run(tiny(**muon), params))


@pytest.mark.parametrize(
  'changes',
  [
    {'model.remat': 'attention'},
    {'loss_chunk': 4, 'optimizer.accumulate': 4, 'model.remat': 'full', 'mesh.fsdp': 2},
    pytest.param({'model.remat': 'full'}, marks=pytest.mark.slow),  # As in the case above.
    pytest.param({'model.remat': 'dots'}, marks=pytest.mark.slow),
    pytest.param({'loss_chunk': 4}, marks=pytest.mark.slow),
  ],
)
def test_ways_to_save_memory_do_not_change_the_numbers(one_device, params, changes):
  assert_same(run(tiny(**changes), params), one_device)


def test_first_moments_may_be_half_as_large(params):
  whole, half = (
    Program(tiny(**{'optimizer.moment_dtype': dtype})) for dtype in ('float32', 'bfloat16')
  )
  size = lambda program: sum(
    leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(program.state.opt_state)
  )
  assert size(half) == pytest.approx(0.75 * size(whole), rel=0.01)


def compiled(**changes):
  return Program(tiny(**changes)).lower().compile()


def test_memory_policies_keep_different_things():
  size = {
    remat: compiled(**{'model.remat': remat, 'model.llm.layers': 8})
    .memory_analysis()
    .temp_size_in_bytes
    for remat in ('none', 'full')
  }
  assert size['full'] < size['none']


def test_every_device_encodes_its_own_views():
  """The devices of the tensor axis too: more devices leave less work to each."""
  encoder = {'model.encoders.clip.layers': 8}
  one, eight = (
    compiled(**encoder, **sizes).cost_analysis()['flops']
    for sizes in (mesh(1, 1, 1), mesh(2, 2, 2))
  )
  assert eight < 0.2 * one


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'model.remat': 'ful'}, "model.remat: got 'ful'.*did you mean 'full'"),
    ({'model.attention': 'splash'}, "'splash' on cpu.*auto"),
    ({'model.attention': 'flash'}, "attention kernel: got 'flash'"),
    ({'mesh.fsdp': -1, 'mesh.tensor': 3}, 'fsdp=-1 tensor=3 expert=1: got 8 cpu devices'),
    ({'mesh.fsdp': -1, 'mesh.data': -1}, 'at most one -1'),
  ],
)
def test_settings_that_cannot_be_are_named(changes, words):
  with pytest.raises(errors.SphinxError, match=words):
    Program(tiny(**changes)).lower()


def test_a_parent_with_another_llm_is_logged(monkeypatch, caplog):
  config = tiny(**{'init_from': 'parent', 'model.llm.norm_eps': 0.1})
  parent, own = (Bundle(each, b'pieces', {}) for each in (tiny(), config))
  monkeypatch.setattr(run_lib.log, 'propagate', True)
  monkeypatch.setattr(run_lib.checkpoints, 'check', lambda *_: None)
  monkeypatch.setattr(run_lib, 'load_bundle', lambda _: parent)
  program = types.SimpleNamespace(params=None)
  run_lib.check_parent(config, program, run_lib.Data(None, None, own, '', None))
  assert "init_from 'parent': another LLM: llm.norm_eps" in caplog.text
