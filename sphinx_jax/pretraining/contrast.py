"""Image-text contrast: an image is to be nearer to its own caption than to the others of a batch.

Source: CLIP, arXiv 2103.00020, section 2.3. All encoders share one text tower. It and the
projections are thrown away.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from sphinx_jax.models import layers
from sphinx_jax.models.encoders import vit
from sphinx_jax.pretraining import objective as objectives
from sphinx_jax.training import loss as losses, step as steps

_FIRST_SCALE, _MOST_SCALE = 1 / 0.07, 100.0  # Of cosines, as in CLIP.
_EPS = 1e-5


class Contrast(nn.Module):
  """Encoders and a text tower with projections to a common space.

  Attributes:
    model: the model config.
    names: the encoders.
    width: W of the common space.
    text: width, layers and heads of the text tower.
    length: L, the longest text.
  """

  model: FrozenConfigDict
  names: tuple[str, ...]
  width: int
  text: FrozenConfigDict
  length: int

  @nn.compact
  def __call__(
    self, images: jax.Array, tokens: jax.Array, is_token: jax.Array
  ) -> tuple[dict[str, jax.Array], jax.Array, jax.Array]:
    """Embeds images and texts.

    Args:
      images: uint8[B,Y,X,3].
      tokens: int32[B,L].
      is_token: bool[B,L], whether there is a token.

    Returns:
      Encoder -> float32[B,W] of unit length, texts float32[B,W] of unit length, and the factor of
      their cosines, float32[].
    """
    embedded = {}
    for name in self.names:
      # The language model will read the class token and the feature map of every view. Without the
      # map in the loss, nothing would train the last block to put anything there.
      output = objectives.encode(self.model, name, images)
      class_token, cells = objectives.class_and_cells(output, name)
      mean = cells.astype(jnp.float32).mean(axis=(2, 3)).astype(class_token.dtype)
      views = jnp.concatenate([class_token, mean], axis=-1)
      embedded[name] = self._project(f'project_{name}', views.reshape(len(images), -1))
    scale = layers.param(self, 'scale', nn.initializers.constant(jnp.log(_FIRST_SCALE)), (), ())
    texts = self._project('project_text', self._read(tokens, is_token))
    return embedded, texts, jnp.minimum(jnp.exp(scale), _MOST_SCALE)

  def _project(self, name: str, x: jax.Array) -> jax.Array:
    y = layers.Dense((self.width,), ('encoder_embed', 'encoder_out'), bias=False, name=name)(x)
    y = y.astype(jnp.float32)
    return y / jnp.linalg.norm(y, axis=-1, keepdims=True).clip(_EPS)

  def _read(self, tokens: jax.Array, is_token: jax.Array) -> jax.Array:
    """The mean of the last hidden states of each text, [B,E]."""
    width, dtype = self.text.width, jnp.dtype(self.model.dtype)
    small = nn.initializers.normal(width**-0.5)
    vocab = self.model.llm.vocab
    table = layers.param(self, 'tokens', small, (vocab, width), (None, 'encoder_embed'), dtype)
    places = layers.param(
      self, 'places', small, (self.length, width), (None, 'encoder_embed'), dtype
    )
    trunk = vit.Trunk(self.text.layers, self.text.heads, 4 * width, _EPS, dtype=dtype, name='text')
    x = trunk(jnp.take(table, tokens, axis=0) + places, is_token.astype(jnp.int32))
    x = layers.LayerNorm(_EPS, dtype=dtype, name='text_norm')(x)
    weight = is_token[..., None].astype(jnp.float32)
    return (x * weight).sum(axis=1) / weight.sum(axis=1).clip(1)


def contrast(images: jax.Array, texts: jax.Array, scale: jax.Array) -> tuple[jax.Array, jax.Array]:
  """The loss of every pair: the mean of the cross entropies over texts and over images.

  Args:
    images: float32[B,W] of unit length.
    texts: float32[B,W] of unit length; text i belongs to image i.
    scale: float32[], factor of the cosines.

  Returns:
    Losses float32[B], and bool[B], whether the image is nearest to its own text.
  """
  logits = scale * images @ texts.T
  own = jnp.arange(len(images))
  to_text, to_image = losses.cross_entropy(logits, own), losses.cross_entropy(logits.T, own)
  return (to_text + to_image) / 2, logits.argmax(axis=1) == own


def objective(model: FrozenConfigDict, section: ConfigDict, length: int) -> objectives.Objective:
  """The objective of a section `contrast`."""
  names = tuple(section.trains)
  text = FrozenConfigDict(section.text.to_dict())
  module = Contrast(model, names, section.width, text, length)

  def init(rng: jax.Array) -> dict:
    image = jnp.zeros((1, model.image_size, model.image_size, 3), jnp.uint8)
    tokens = jnp.zeros((1, length), jnp.int32)
    return module.init(rng, image, tokens, tokens == 0)['params']

  def sums(params: dict, batch: steps.Batch, key: jax.Array | None) -> objectives.Sums:
    del key
    embedded, texts, scale = module.apply(
      {'params': params}, batch['images'][:, 0], *objectives.answers(batch, length)
    )
    found = {name: contrast(images, texts, scale) for name, images in embedded.items()}
    of_each = jnp.stack([loss.sum() for loss, _ in found.values()])
    weight = objectives.rows(batch)
    accuracies = {
      f'{losses.MEAN}accuracy/{name}': correct.astype(jnp.float32).sum()
      for name, (_, correct) in found.items()
    }
    return {
      'loss': of_each.sum(),
      'weight': weight,
      'task_loss': of_each,
      'task_weight': jnp.full(len(names), weight),
      **accuracies,
    }

  def trained(params: Mapping) -> dict[str, dict]:
    return {name: params[name] for name in names}

  return objectives.Objective(init, steps.Objective(objectives.rows, sums), names, trained)
