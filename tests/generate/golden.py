"""Tiny models of the official code: release folders, recorded forwards, and a numpy reference.

Forwards and weights are recorded from the official code (tests/golden). Of the tokens of llama_ens5
every third is recorded.
"""

import json
import pathlib
import shutil
import types

import flax.linen as nn
import jax
import numpy as np

import sphinx_jax
from sphinx_jax.checkpoint.foreign import sources

FOLDER = pathlib.Path(__file__).parents[1] / 'golden'
# Variant without a recorded forward -> the recorded weights to use, and changes of config.json.
DERIVED = {
  'llama_ens10': (
    'llama_ens5',
    dict(rope_scaling=None, rope_theta=20000, norm_eps=1e-6, max_seq_len=4096),
  ),
  'llama_ens5p2': ('llama_ens5', dict(rope_scaling=None)),
  'llama_ens5_light': (
    'llama_ens_light',
    dict(rope_scaling=0.5, rope_theta=50000, max_seq_len=2048),
  ),
}
# Visual tokens of one image.
WORDS = {
  'llama_ens': 291,
  'llama_ens5': 1455,
  'llama_ens10': 2910,
  'llama_ens5p2': 687,
  'llama_ens_light': 259,
  'llama_ens5_light': 1295,
  'mixtral_sparse_ens': 291,
  'mixtral_sparse_ens5': 1455,
}
MEAN, STD = (
  np.array(x, np.float32)
  for x in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
)
_WATCHED = {
  ('Clip', '__call__'): 'clip',
  ('ConvNext', '__call__'): 'convnext',
  ('DinoV2', '__call__'): 'dinov2',
  ('QFormer', '__call__'): 'qformer',
  ('Vit', '__call__'): 'blip_vit',
  ('Sphinx', 'encode'): 'image_tokens',
}


def release(to, weights, variant, **changes):
  """Copies a golden release folder as another variant, with changes of its config.json."""
  shutil.copytree(FOLDER / 'models' / weights / 'mp1', to)
  (to / 'config.json').write_text(json.dumps(config(to) | changes))
  (to / 'meta.json').write_text(json.dumps({'llama_type': variant}))
  return to


def forward(name):
  """Arrays of a recorded forward; images as [B,Y,X,3]."""
  recorded = dict(np.load(FOLDER / 'forward' / f'{name}.npz'))
  if 'image_u8' in recorded:
    recorded['image_u8'] = recorded['image_u8'].transpose(0, 2, 3, 1)
  return recorded


def run(directory, tokens, images, **options):
  """Loads a folder as a user does and computes logits, with the encoders' inputs and outputs.

  One program is compiled.

  Returns:
    A namespace:
      model: the loaded model.
      logits: float32[B,T,vocab].
      views: encoder -> its input float32[B*V,Y,X,3].
      features: encoder -> its output, with a feature map flattened behind the class token as in the
        official code.
      image_tokens: [B,words,D].
  """
  model, seen = sphinx_jax.load(directory, **options), {}

  def watch(module, args, kwargs, context):
    out = module(*args, **kwargs)
    if name := _WATCHED.get((type(context.module).__name__, context.method_name)):
      jax.debug.callback(
        lambda *values: seen.update({name: jax.tree.map(np.asarray, values)}), args[0], out
      )
    return out

  with nn.intercept_methods(watch):
    logits = np.asarray(model.logits(tokens, images))
  jax.effects_barrier()

  def flatten(output):
    if not isinstance(output, tuple):
      return output
    cls, feature_map = output
    cells = feature_map.reshape(len(cls), -1, cls.shape[-1])
    return np.concatenate([cls[:, None], cells], axis=1)

  image_tokens = seen.pop('image_tokens')[1]
  return types.SimpleNamespace(
    model=model,
    logits=logits,
    image_tokens=image_tokens,
    views={name: views for name, (views, _) in seen.items()},
    features={name: flatten(output) for name, (_, output) in seen.items()},
  )


def weights(directory):
  """Official name, without 'llma.', -> array."""
  return {key: tensor.read() for key, tensor in sources.open_source(directory).tensors.items()}


def config(directory):
  return json.loads((pathlib.Path(directory) / 'config.json').read_text())


def image_tokens(features, w, views, pool):
  """The visual tokens of one image from its views' features: float32[words,D].

  Source: docs/official_sphinx.md, "Tokens of a view".
  """
  channels = []
  for name in ('clip', 'convnext', 'dinov2'):
    if name not in features:
      continue
    first, cells = features[name][:, :1], features[name][:, 1:]
    if name == 'convnext':
      first = cells.mean(axis=1, keepdims=True)  # It has no class token.
    if cells.shape[1] == 64:  # 8 x 8 cells are repeated to 16 x 16.
      cells = cells.reshape(views, 8, 8, -1).repeat(2, axis=1).repeat(2, axis=2)
      cells = cells.reshape(views, 256, -1)
    channels.append(np.concatenate([first, cells], axis=1))
  mixed = np.concatenate(channels, axis=-1)
  tokens = []
  for view, x in enumerate(mixed):
    if pool and view > 0:
      cells = x[1:].reshape(8, 2, 8, 2, -1).mean(axis=(1, 3)).reshape(64, -1)
      x = np.concatenate([x[:1], cells])
    queries = []
    if 'qformer' in features:
      queries = [_project(features['qformer'][view], w, 'qformer_proj')]
    tokens += [w['start_img'][0], *queries, _project(x, w, 'visual_proj'), w['end_img'][0]]
  return np.concatenate(tokens)


def _project(x, w, name):
  x = x @ w[f'{name}.0.weight'].T + w[f'{name}.0.bias']
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return x * w[f'{name}.1.weight'] + w[f'{name}.1.bias']


def logits(tokens, visual, w, config):
  """The official decoder on [BOS][visual float32[words,D]][text]: float32[T,vocab] of the last T.

  Source: docs/official_sphinx.md, "LLaMA".
  """
  text = w['tok_embeddings.weight'][tokens]
  x = np.concatenate([text[:1], visual, text[1:]])
  length, head_width = len(x), config['dim'] // config['n_heads']
  queries_per_key = config['n_heads'] // (config['n_kv_heads'] or config['n_heads'])
  exponents = np.arange(0, head_width, 2) / head_width
  frequency = (1 / config['rope_theta'] ** exponents).astype(np.float32)
  positions = np.arange(length, dtype=np.float32) * np.float32(config['rope_scaling'] or 1)
  rotation = np.exp(1j * np.outer(positions, frequency))
  causal = np.triu(np.full((length, length), -np.inf, np.float32), 1)

  def norm(x, name):
    mean_square = np.square(x).mean(-1, keepdims=True)
    return x / np.sqrt(mean_square + config['norm_eps']) * w[f'{name}.weight']

  def rotate(x):
    pairs = (x[:, 0::2] + 1j * x[:, 1::2]) * rotation
    # Real parts first: the order of channels does not change a product of query and key.
    return np.concatenate([pairs.real, pairs.imag], axis=1).astype(np.float32)

  def heads(y, name):
    projected = y @ w[f'{name}.weight'].T
    return np.split(projected, projected.shape[1] // head_width, axis=1)

  for i in range(config['n_layers']):
    layer = f'layers.{i}'
    y, out = norm(x, f'{layer}.attention_norm'), []
    query, key, value = (heads(y, f'{layer}.attention.{name}') for name in ('wq', 'wk', 'wv'))
    for h in range(config['n_heads']):
      scores = rotate(query[h]) @ rotate(key[h // queries_per_key]).T
      scores = scores / np.float32(head_width**0.5) + causal
      weights = np.exp(scores - scores.max(-1, keepdims=True))
      out.append(weights / weights.sum(-1, keepdims=True) @ value[h // queries_per_key])
    x = x + np.concatenate(out, axis=1) @ w[f'{layer}.attention.wo.weight'].T
    y = norm(x, f'{layer}.ffn_norm')
    gate = y @ w[f'{layer}.feed_forward.w1.weight'].T
    gated = gate / (1 + np.exp(-gate)) * (y @ w[f'{layer}.feed_forward.w3.weight'].T)
    x = x + gated @ w[f'{layer}.feed_forward.w2.weight'].T
  return norm(x[len(visual) :], 'norm') @ w['output.weight'].T


def bicubic(x, size):
  """Resizes [Y,X,3]: A = -0.75, corners not aligned, no antialiasing, border clamped.

  Source: docs/official_sphinx.md, "Interpolation".
  """

  def weight(t):
    t = abs(t)
    if t <= 1:
      return (1.25 * t - 2.25) * t * t + 1
    if t < 2:
      return ((-0.75 * t + 3.75) * t - 6) * t + 3
    return 0.0

  matrix, scale = np.zeros((size, len(x))), len(x) / size
  for i in range(size):
    source = (i + 0.5) * scale - 0.5
    for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
      matrix[i, min(max(tap, 0), len(x) - 1)] += weight(source - tap)
  return np.einsum('iy,yxc,jx->ijc', matrix, x, matrix, optimize=True)


def crops(x, size):
  """[Y,X,3] -> its squares with `size` pixels along one side, row by row."""
  return [
    x[top : top + size, left : left + size]
    for top in range(0, len(x), size)
    for left in range(0, len(x), size)
  ]
