import dataclasses

import jax.numpy as jnp
import ml_collections
import pytest

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle, check_same_model, load_bundle
from sphinx_jax.core import config as config_lib, errors


def bundle(tokenizer: bytes | None = b'\x00pieces') -> Bundle:
  config = ml_collections.ConfigDict({'name': 'run', 'sizes': (1, 2)})
  return Bundle(config, tokenizer, {'system': 'Be brief.'})


def test_what_is_written_into_a_meta_is_read_back():
  for tokenizer in (b'\x00pieces', None):
    back = Bundle.from_meta(bundle(tokenizer).to_meta(), 'here')
    assert back.tokenizer == tokenizer and back.dialog == {'system': 'Be brief.'}
    assert config_lib.to_json(back.config) == config_lib.to_json(bundle().config)
    assert back.config.sizes == (1, 2)


def test_keys_on_disk_are_those_of_older_checkpoints():
  meta = bundle().to_meta()
  assert list(meta) == ['config', 'tokenizer', 'dialog']
  assert meta['tokenizer'] == 'AHBpZWNlcw==' and meta['config'].startswith('{\n  "name": "run"')


def test_a_bundle_is_loaded_from_a_directory(tmp_path):
  with store.Store(tmp_path) as run:
    run.save(1, {'w': jnp.ones(2)}, None, bundle().to_meta())
  assert load_bundle(tmp_path).tokenizer == b'\x00pieces'


@pytest.mark.parametrize(
  'meta', [{}, {'config': '{'}, {'config': None}, {'config': '{}', 'tokenizer': 'x'}]
)
def test_an_unreadable_meta_is_refused_with_its_directory(meta):
  with pytest.raises(errors.SphinxError, match="checkpoint 'here': got a meta without a readable"):
    Bundle.from_meta(meta, 'here')


def test_another_tokenizer_is_refused_with_its_directory():
  with pytest.raises(errors.SphinxError, match="mix, input 'c': got another tokenizer"):
    check_same_model('mix', ['a', 'b', 'c'], [bundle(), bundle(), bundle(b'other')])


MODEL = {
  **dict(image_size=28, grid=1, pool=1, half_round=False, dtype='float32', remat='none'),
  **dict(attention='auto', scan_unroll=1),
  'encoders': {'clip': dict(view=28, patch=14, width=8, layers=1, heads=2)},
  'llm': dict(name='llama', vocab=16, width=8, layers=1, heads=2, norm_eps=1e-5, rope_theta=1e4),
}


@pytest.mark.parametrize(
  'key, value, difference',
  [
    ('llm.heads', 4, 'llm.heads: 2 there, 4 here'),
    ('llm.kv_heads', 1, 'llm.kv_heads: 2 there, 1 here'),
    ('llm.norm_eps', 1e-6, 'llm.norm_eps: 1e-05 there, 1e-06 here'),
    ('llm.rope_theta', 5e5, 'llm.rope_theta: 10000.0 there, 500000.0 here'),
    ('llm.rope_scaling', 0.5, 'llm.rope_scaling: None there, 0.5 here'),
    ('encoders.clip.activation', 'quick_gelu', "activation: 'gelu' there, 'quick_gelu' here"),
    ('encoders.clip.heads', 4, 'encoders.clip.heads: 2 there, 4 here'),
    ('grid', 2, 'grid: 1 there, 2 here'),
    # Defaults, and what changes speed, memory or rounding only.
    ('llm.kv_heads', 2, None),
    ('llm.rope_scaling', None, None),
    ('encoders.clip.activation', 'gelu', None),
    ('encoders.dinov2', None, None),
    ('llm.max_length', 7, None),
    ('dtype', 'bfloat16', None),
    ('remat', 'full', None),
    ('attention', 'xla', None),
    ('scan_unroll', 2, None),
    ('half_round', True, None),
  ],
)
def test_settings_that_decide_what_weights_mean_are_compared(key, value, difference):
  bundles = []
  for changes in ({}, {key: value}):
    config = ml_collections.ConfigDict({'model': MODEL})
    for name, changed in changes.items():
      *sections, last = name.split('.')
      section = config.model
      for part in sections:
        section = section[part]
      section[last] = changed
    bundles.append(Bundle(config, b'pieces', {'system': ''}))
  if difference is None:
    check_same_model('mix', ['a', 'b'], bundles)
    return
  with pytest.raises(errors.SphinxError, match="mix, input 'b': got another model") as caught:
    check_same_model('mix', ['a', 'b'], bundles)
  assert difference in str(caught.value)


def test_another_template_is_refused():
  other = dataclasses.replace(bundle(), dialog={'system': 'Be long.'})
  with pytest.raises(errors.SphinxError, match="dialog.system: 'Be brief.' there, 'Be long.' here"):
    check_same_model('mix', ['a', 'b'], [bundle(), other])
