"""Captioning through the queries of a Q-Former: a small decoder sees the image in them alone.

Source: BLIP-2, arXiv 2301.12597, the image-grounded text generation of section 3.2. The decoder is
thrown away.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from sphinx_jax.models import layers
from sphinx_jax.models.llms import llama
from sphinx_jax.pretraining import objective as objectives
from sphinx_jax.training import loss as losses, step as steps


class Captioner(nn.Module):
  """An encoder that returns query tokens, and a decoder.

  Attributes:
    model: the model config.
    name_of_encoder: the encoder.
    text: width, layers and heads of the decoder.
  """

  model: FrozenConfigDict
  name_of_encoder: str
  text: FrozenConfigDict

  @nn.compact
  def __call__(self, images: jax.Array, tokens: jax.Array) -> jax.Array:
    """Logits float32[B,L,vocab] of captions int32[B,L] of images uint8[B,Y,X,3]."""
    dtype = jnp.dtype(self.model.dtype)
    name = self.name_of_encoder
    queries = objectives.queries(objectives.encode(self.model, name, images), name)
    prefix = layers.Dense(
      (self.text.width,), ('encoder_embed', 'encoder_out'), dtype=dtype, name='project'
    )(queries.reshape(len(images), -1, queries.shape[-1]))
    decoder = llama.Llama(
      vocab=self.model.llm.vocab,
      width=self.text.width,
      layers=self.text.layers,
      heads=self.text.heads,
      multiple_of=32,
      dtype=dtype,
      name='decoder',
    )
    # Every view's queries, then the caption. The last query predicts the first token.
    x = jnp.concatenate([prefix, decoder.embed(tokens[:, :-1])], axis=1)
    places = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
    states, _ = decoder.hidden_states(x, places, jnp.ones_like(places))
    return decoder.lm_head(states[:, prefix.shape[1] - 1 :])


def objective(model: FrozenConfigDict, section: ConfigDict, length: int) -> objectives.Objective:
  """The objective of a section `captions`, of one encoder."""
  (name,) = section.trains
  module = Captioner(model, name, FrozenConfigDict(section.text.to_dict()))

  def init(rng: jax.Array) -> dict:
    image = jnp.zeros((1, model.image_size, model.image_size, 3), jnp.uint8)
    return module.init(rng, image, jnp.zeros((1, length), jnp.int32))['params']

  def weight(batch: steps.Batch) -> jax.Array:
    _, is_token = objectives.answers(batch, length)
    return is_token.astype(jnp.float32).sum()

  def sums(params: dict, batch: steps.Batch, key: jax.Array | None) -> objectives.Sums:
    del key
    tokens, is_token = objectives.answers(batch, length)
    logits = module.apply({'params': params}, batch['images'][:, 0], tokens)
    loss = (losses.cross_entropy(logits, tokens) * is_token).sum()
    total = is_token.astype(jnp.float32).sum()
    return {'loss': loss, 'weight': total, 'task_loss': loss[None], 'task_weight': total[None]}

  def trained(params: Mapping) -> dict[str, dict]:
    return {name: params[name]}

  return objectives.Objective(init, steps.Objective(weight, sums), (name,), trained)
