"""Self-distillation: a student sees parts of an image and predicts what its teacher makes of more.

The teacher is a running mean of the student. Its outputs are centered and sharpened, so that they
neither become equal for all images nor uniform. Sources: DINO, arXiv 2104.14294, for class tokens;
iBOT, arXiv 2111.07832, for the cells of the feature map, some of which the student does not see.
The heads are thrown away, and the result is the teacher.
"""

from collections.abc import Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, FrozenConfigDict

from sphinx_jax.models import families, layers
from sphinx_jax.pretraining import objective as objectives
from sphinx_jax.training import step as steps
from sphinx_jax.training.state import State

# Edges of crops, as shares of the image's edge: those that the teacher sees, and smaller ones.
_GLOBAL, _LOCAL = (0.6, 1.0), (0.35, 0.55)
_GLOBALS = 2
_STUDENT_TEMPERATURE, _TEACHER_TEMPERATURE = 0.1, 0.04
_CENTER_MOMENTUM = 0.9
_EPS = 1e-6
_CENTER = 'center'  # Name among the sums; the update takes it out of the metrics.


class Views(NamedTuple):
  """What student and teacher see, normalized.

  Attributes:
    whole: float32[B,2,y,x,3], large crops.
    masked: the same, without the cells of `hidden`.
    small: float32[B,N,y,x,3], small crops.
    hidden: bool[B,2,G,G].
  """

  whole: jax.Array
  masked: jax.Array
  small: jax.Array
  hidden: jax.Array


class Distill(nn.Module):
  """An encoder with a head: scores of prototypes.

  Attributes:
    model: the model config.
    name_of_encoder: the encoder.
    prototypes: K.
  """

  model: FrozenConfigDict
  name_of_encoder: str
  prototypes: int

  @nn.compact
  def __call__(self, views: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Scores float32[B,V,K] of class tokens, float32[B,V,G,G,K] of cells, of normalized views."""
    name = self.name_of_encoder
    output = objectives.encode_views(families.encoder(self.model, name), views)
    class_token, cells = objectives.class_and_cells(output, name)
    width, dtype = class_token.shape[-1], jnp.dtype(self.model.dtype)
    names = ('encoder_embed', 'encoder_out')
    hidden = layers.Dense((2 * width,), names, dtype=dtype, name='hidden')
    bottleneck = layers.Dense((width,), names, dtype=dtype, name='bottleneck')
    matrix = layers.param(
      self, 'prototypes', nn.initializers.normal(1.0), (width, self.prototypes), names
    )

    def score(x: jax.Array) -> jax.Array:
      x = bottleneck(layers.activate('gelu', hidden(x))).astype(jnp.float32)
      return _unit(x, -1) @ _unit(matrix, 0)

    return score(class_token), score(cells)


def _unit(x: jax.Array, axis: int) -> jax.Array:
  return x / jnp.linalg.norm(x, axis=axis, keepdims=True).clip(_EPS)


def crop(
  images: jax.Array, key: jax.Array, edges: tuple[float, float], count: int, size: int
) -> jax.Array:
  """Cuts random squares out of images and resizes them.

  Colors and sides stay as they are: they are part of what images show.

  Args:
    images: float32[B,Y,X,3], Y = X.
    key: random key.
    edges: smallest and largest edge of a square, as shares of that of the image.
    count: N, crops of each image.
    size: pixels along one side of the result.

  Returns:
    float32[B,N,size,size,3].
  """
  shape = len(images), count
  key_edge, key_corner = jax.random.split(key)
  edge = jax.random.uniform(key_edge, shape, minval=edges[0], maxval=edges[1])
  corner = jax.random.uniform(key_corner, (*shape, 2)) * (1 - edge[..., None])

  def cut(image: jax.Array, edge: jax.Array, corner: jax.Array) -> jax.Array:
    scale = size / (edge * image.shape[0])
    return jax.image.scale_and_translate(
      image,
      (size, size, 3),
      (0, 1),
      jnp.stack([scale, scale]),
      -corner * image.shape[0] * scale,
      'linear',
    )

  of_image = jax.vmap(cut, in_axes=(None, 0, 0))
  return jax.vmap(of_image)(images, edge, corner)


def views(
  images: jax.Array, key: jax.Array, size: int, side: int, small: int, hidden: float
) -> Views:
  """Random crops of normalized images float32[B,Y,X,3].

  Args:
    images: the images.
    key: random key.
    size: pixels along one side of a crop.
    side: G, cells along one side of it.
    small: number of small crops.
    hidden: share of the cells of large crops that the student does not see.
  """
  keys = jax.random.split(key, 3)
  whole = crop(images, keys[0], _GLOBAL, _GLOBALS, size)
  mask = jax.random.bernoulli(keys[2], hidden, (*whole.shape[:2], side, side))
  pixels = jnp.repeat(jnp.repeat(mask, size // side, axis=2), size // side, axis=3)
  masked = jnp.where(pixels[..., None], 0.0, whole)  # 0 is the mean color.
  return Views(whole, masked, crop(images, keys[1], _LOCAL, small, size), mask)


def teach(scores: jax.Array, center: jax.Array) -> jax.Array:
  """The distribution over prototypes that a student learns: centered, then sharpened."""
  return jax.nn.softmax((scores - center) / _TEACHER_TEMPERATURE, axis=-1)


def cross_entropy(target: jax.Array, scores: jax.Array) -> jax.Array:
  """Cross entropy of a student's scores [...,K] with a teacher's distribution [...,K]."""
  return -(target * jax.nn.log_softmax(scores / _STUDENT_TEMPERATURE, axis=-1)).sum(axis=-1)


def move(old: jax.Array, new: jax.Array, momentum: float) -> jax.Array:
  """A running mean after one more value."""
  return momentum * old + (1 - momentum) * new


def of_classes(target: jax.Array, scores: jax.Array) -> jax.Array:
  """The loss of class tokens, float32[B]: mean over all pairs of two different crops.

  Args:
    target: distributions of the teacher's crops, float32[B,2,K].
    scores: the student's scores of the same crops and others, float32[B,V,K].
  """
  pairs = cross_entropy(target[:, :, None], scores[:, None])  # [B,2,V]
  differ = 1 - jnp.eye(*pairs.shape[1:])
  return (pairs * differ).sum(axis=(1, 2)) / differ.sum()


def of_cells(target: jax.Array, scores: jax.Array, hidden: jax.Array) -> jax.Array:
  """The loss of hidden cells, float32[B], their mean.

  Args:
    target: distributions of the teacher, float32[B,2,G,G,K].
    scores: the student's scores, float32[B,2,G,G,K].
    hidden: bool[B,2,G,G].
  """
  weight = hidden.astype(jnp.float32)
  total = (cross_entropy(target, scores) * weight).sum(axis=(1, 2, 3))
  return total / weight.sum(axis=(1, 2, 3)).clip(1)


def objective(model: FrozenConfigDict, section: ConfigDict, length: int) -> objectives.Objective:
  """The objective of a section `distill`, of one encoder."""
  del length
  (name,) = section.trains
  module = Distill(model, name, section.prototypes)
  encoder = families.encoder(model, name)

  def init(rng: jax.Array) -> dict:
    view = jnp.zeros((1, 1, encoder.view, encoder.view, 3))
    student = module.init(rng, view)['params']
    center = nn.LogicallyPartitioned(jnp.zeros((2, section.prototypes)), (None, None))
    return {'student': student, 'teacher': student, 'center': center}

  def sums(params: dict, batch: steps.Batch, key: jax.Array | None) -> objectives.Sums:
    images = families.normalized(model, batch['images'][:, 0])
    seen = views(images, key, encoder.view, encoder.side, section.small, section.hidden)
    teacher_class, teacher_cells = module.apply({'params': params['teacher']}, seen.whole)
    crops = jnp.concatenate([seen.masked, seen.small], axis=1)
    student_class, student_cells = module.apply({'params': params['student']}, crops)
    of_class, of_cell = params['center']
    classes = of_classes(teach(teacher_class, of_class), student_class)
    cells = of_cells(teach(teacher_cells, of_cell), student_cells[:, :_GLOBALS], seen.hidden)
    parts = jnp.stack([classes.sum(), cells.sum()])
    weight = objectives.rows(batch)
    means = [teacher_class.mean(axis=(0, 1)), teacher_cells.mean(axis=(0, 1, 2, 3))]
    return {
      'loss': parts.sum(),
      'weight': weight,
      'task_loss': parts,
      'task_weight': jnp.full(2, weight),
      _CENTER: jnp.stack(means),
    }

  def after(state: State, metrics: objectives.Sums) -> tuple[State, objectives.Sums]:
    metrics = dict(metrics)
    center = move(state.frozen['center'], metrics.pop(_CENTER), _CENTER_MOMENTUM)
    teacher = jax.tree.map(
      lambda old, new: move(old, new, section.momentum),
      state.frozen['teacher'],
      state.trained['student'],
    )
    frozen = {'teacher': teacher, 'center': center}
    return State(state.step, state.trained, frozen, state.opt_state), metrics

  def trained(params: Mapping) -> dict[str, dict]:
    return {name: params['teacher'][name]}

  return objectives.Objective(
    init,
    steps.Objective(objectives.rows, sums),
    ('class_token', 'cells'),
    trained,
    trainable=(('student/.*', 'train'), ('.*', 'frozen')),
    after=after,
  )
