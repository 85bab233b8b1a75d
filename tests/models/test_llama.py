import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.models.llms import llama

GOLDEN = np.load(
  pathlib.Path(__file__).parents[1] / 'golden' / 'models' / 'llama_text_gqa_rope.npz'
)


def golden_params(layers=2):
  weight = lambda key: GOLDEN[f'w/{key}.weight']
  stacked = lambda name: {
    'kernel': np.stack([weight(f'layers.{i}.{name}').T for i in range(layers)])
  }
  norm = lambda name: {'scale': np.stack([weight(f'layers.{i}.{name}') for i in range(layers)])}
  return {
    'embed': weight('tok_embeddings'),
    'norm': {'scale': weight('norm')},
    'output': {'kernel': weight('output').T},
    'layers': {
      'attention': {name: stacked(f'attention.{name}') for name in ('wq', 'wk', 'wv', 'wo')},
      'feed_forward': {name: stacked(f'feed_forward.{name}') for name in ('w1', 'w2', 'w3')},
      'attention_norm': norm('attention_norm'),
      'ffn_norm': norm('ffn_norm'),
    },
  }


def test_logits_are_those_of_the_official_decoder():
  """The text-only forward of the official code, with two key/value heads and halved positions."""
  model = llama.Llama(
    vocab=128,
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    multiple_of=32,
    rope_scaling=0.5,
    max_length=64,
  )
  tokens = GOLDEN['tokens']
  positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)

  def run(module, tokens):
    embedded, segments = module.embed(tokens), np.ones_like(positions)
    return module.lm_head(module.hidden_states(embedded, positions, segments=segments)[0])

  logits = model.apply({'params': golden_params()}, tokens, method=run)
  np.testing.assert_allclose(logits, GOLDEN['logits'], atol=2e-5)


def test_rotary_table_and_rotation_are_the_official_ones():
  positions = jnp.arange(GOLDEN['freqs_cos'].shape[0])[None]
  angles = llama.rotary_angles(positions, 16, 10000.0, 0.5)[0]
  np.testing.assert_allclose(jnp.cos(angles), GOLDEN['freqs_cos'], atol=5e-6)
  np.testing.assert_allclose(jnp.sin(angles), GOLDEN['freqs_sin'], atol=5e-6)
  angles = llama.rotary_angles(jnp.arange(3, 9)[None], 16, 10000.0, None)
  rotated = llama.rotate(jnp.asarray(GOLDEN['rot_in']), jnp.cos(angles), jnp.sin(angles))
  np.testing.assert_allclose(rotated, GOLDEN['rot_out_pos3to8'], atol=2e-6)


@pytest.mark.parametrize(
  'width, multiple_of, multiplier, ffn',
  [
    (5120, 256, None, 13824),
    (2048, 256, None, 5632),
    (4096, 256, None, 11008),
    (64, 32, None, 192),
    (64, 32, 1.3, 224),
  ],
)
def test_feed_forward_width(width, multiple_of, multiplier, ffn):
  assert llama.ffn_width(width, multiple_of, multiplier) == ffn
