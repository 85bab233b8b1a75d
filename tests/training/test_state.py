import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.training import state

PARAMS = {
  'encoders': {'clip': {'w': jnp.ones((2, 2)), 'count': jnp.ones((), jnp.int32)}},
  'llm': {'w': jnp.zeros(3)},
}
FROZEN_ENCODERS = (('encoders/.*', 'frozen'), ('.*', 'train'))


def test_split_and_merge_are_inverse():
  trained, frozen = state.split(PARAMS, FROZEN_ENCODERS)
  assert set(trained) == {'llm'} and set(frozen) == {'encoders'}
  assert jax.tree.all(jax.tree.map(lambda a, b: a is b, state.merge(trained, frozen), PARAMS))


def test_first_match_decides_and_all_must_be_covered():
  assert not state.split(PARAMS, (('.*', 'train'), ('.*', 'frozen')))[1]
  with pytest.raises(errors.SphinxError, match='llm/w'):
    state.split(PARAMS, (('encoders/.*', 'frozen'),))
  with pytest.raises(errors.SphinxError, match="'trian'.*did you mean 'train'"):
    state.split(PARAMS, (('.*', 'trian'),))


@pytest.mark.parametrize(
  'trainable, words',
  [
    ((('encoder/.*', 'frozen'), ('.*', 'train')), "'encoder/.*': got a rule that matches no"),
    ((('.*', 'frozen'),), 'every parameter frozen'),
  ],
)
def test_rules_that_do_nothing_are_refused(trainable, words):
  state.check({'llm': PARAMS['llm']}, FROZEN_ENCODERS)  # A model without encoders.
  with pytest.raises(errors.SphinxError, match=words):
    state.check(PARAMS, trainable)


def test_frozen_is_stored_in_the_compute_dtype_and_trained_in_float32():
  stored = state.storage_dtypes(jax.eval_shape(lambda: PARAMS), FROZEN_ENCODERS, 'bfloat16')
  assert stored['encoders']['clip']['w'].dtype == jnp.bfloat16
  assert stored['encoders']['clip']['count'].dtype == np.int32
  assert stored['llm']['w'].dtype == jnp.float32
