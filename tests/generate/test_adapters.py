"""Loading weights with the adapter of a run, and in few bits."""

import shutil

import numpy as np
import pytest

import sphinx_jax
from sphinx_jax.checkpoint import adapter_mixing, store
from sphinx_jax.core import errors, trees
from sphinx_jax.generate import load
from sphinx_jax.models import quantized
from tests.generate import small

TOKENS = np.arange(5, 25)[None]


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
  """A checkpoint, and that of a run with adapters on it."""
  return small.save_base_and_adapter(tmp_path_factory.mktemp('runs'))


def logits(*given, **options):
  return np.asarray(sphinx_jax.load(*given, **options).logits(TOKENS, small.images(1)))


def test_an_adapter_loads_alone_and_with_its_weights(folders):
  base, adapter = folders
  alone = logits(adapter)
  np.testing.assert_array_equal(alone, logits(base, adapter=adapter))
  np.testing.assert_array_equal(alone, logits(f'{base}+{adapter}'))
  assert np.abs(alone - logits(base)).max() > 0.1


def test_a_run_is_that_of_the_place_that_is_named(folders):
  base, adapter = folders
  for given, name, step in (
    ((adapter,), 'adapter', 3),
    ((f'{base}+{adapter}',), 'base', 7),
    ((base, None, adapter), 'base', 7),
  ):
    model, meta, config = load.load_run(*given)
    assert (config.name, meta['step']) == (name, step)
    assert 'lora_a' in model.params['llm']['layers']['attention']['wq']


def test_a_mix_of_adapters_loads_like_a_run(folders, tmp_path):
  base, adapter = folders
  mixed = adapter_mixing.mix_adapters([adapter, adapter], (0.5, 0.5), tmp_path / 'mix', 4)
  assert mixed['total'].error < 1e-6
  np.testing.assert_allclose(logits(tmp_path / 'mix'), logits(adapter), rtol=1e-4, atol=1e-4)


def test_an_adapter_is_sharded_over_a_mesh(folders):
  np.testing.assert_allclose(
    logits(folders[1], mesh='serving'), logits(folders[1]), rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(('form', 'most'), [('int8', 0.05), ('int4', 1.0), ('nf4', 1.0)])
def test_weights_in_few_bits_are_near_those_in_full(folders, form, most):
  base, adapter = folders
  for place in (base, adapter):
    full, few = logits(place), logits(place, weights=form)
    assert 0 < np.abs(few - full).mean() < most * np.abs(full).mean()
  model = sphinx_jax.load(base, weights=form)
  codes = [leaf for path, leaf in trees.flatten(model.params).items() if path.endswith(form)]
  assert codes and all(leaf.dtype.itemsize == 1 for leaf in codes)
  assert quantized.form_of(model.params['llm']['output']) is None
  assert model.chat([('What is the color?', None)], small.images(1)[0], max_new_tokens=4)


def test_an_adapter_whose_weights_are_gone_is_refused_with_what_to_do(folders, tmp_path):
  base, adapter = folders
  moved = shutil.copytree(base, tmp_path / 'moved')
  np.testing.assert_array_equal(logits(moved, adapter=adapter), logits(adapter))
  meta = store.load_meta(adapter) | {'adapter_of': {'path': '/nowhere', 'identity': 'x'}}
  with store.Store(tmp_path / 'orphan') as saver:
    saver.save(3, store.load_params(adapter), None, meta)
  with pytest.raises(errors.SphinxError, match="no checkpoint in '/nowhere'.*--adapter=DIR"):
    sphinx_jax.load(tmp_path / 'orphan')
  with pytest.raises(errors.SphinxError, match='got a checkpoint with all weights'):
    sphinx_jax.load(base, adapter=moved)
  with pytest.raises(errors.SphinxError, match='a run that holds adapters alone.*merge it first'):
    sphinx_jax.load(adapter, adapter=adapter)
  with pytest.raises(errors.SphinxError, match='one adapter of a checkpoint'):
    sphinx_jax.load(f'{base}+{adapter}', adapter=adapter)
  with pytest.raises(errors.SphinxError, match="weights: got 'int3'"):
    sphinx_jax.load(base, weights='int3')
