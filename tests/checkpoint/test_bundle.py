import jax.numpy as jnp
import ml_collections
import pytest

from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle, check_same_tokenizer, load_bundle
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
    check_same_tokenizer('mix', ['a', 'b', 'c'], [bundle(), bundle(), bundle(b'other')])
