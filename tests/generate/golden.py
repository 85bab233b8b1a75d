"""The official code's tiny models: release folders of every variant, what a run of ours saw, and the same in plain numpy.

Forwards and weights are recorded from the official code (tests/golden); of llama_ens5 every third token is kept.
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
# Variant -> the weights that it runs on, and what its config.json says otherwise.
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
WORDS = {
  'llama_ens': 291,
  'llama_ens5': 1455,
  'llama_ens10': 2910,
  'llama_ens5p2': 687,
  'llama_ens_light': 259,
  'llama_ens5_light': 1295,
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


def release(to, weights, variant, **config):
  """A copy of a golden release folder that is another variant, with changes to its config.json."""
  shutil.copytree(FOLDER / 'models' / weights / 'mp1', to)
  said = json.loads((to / 'config.json').read_text())
  (to / 'config.json').write_text(json.dumps(said | config))
  (to / 'meta.json').write_text(json.dumps({'llama_type': variant}))
  return to


def forward(name):
  """A golden forward, pictures as [B,Y,X,3]."""
  found = dict(np.load(FOLDER / 'forward' / f'{name}.npz'))
  if 'image_u8' in found:
    found['image_u8'] = found['image_u8'].transpose(0, 2, 3, 1)
  return found


def run(directory, tokens, images, **options):
  """Loads a folder as a user does and asks for logits, which is compiled once: the encoders tell on the way what they do.

  Returns:
    A namespace: `model`; `logits`; `views` (encoder -> float32[B*V,Y,X,3] that it saw); `features` (encoder -> what it
    gave, the grids flattened behind class tokens as in the official code); `image_tokens` [B,words,D].
  """
  model, told = sphinx_jax.load(directory, **options), {}

  def watch(module, args, kwargs, context):
    out = module(*args, **kwargs)
    if name := _WATCHED.get((type(context.module).__name__, context.method_name)):
      jax.debug.callback(
        lambda *values: told.update({name: jax.tree.map(np.asarray, values)}), args[0], out
      )
    return out

  with nn.intercept_methods(watch):
    logits = np.asarray(model.logits(tokens, images))
  jax.effects_barrier()
  joined = lambda cls, grid: np.concatenate(
    [cls[:, None], grid.reshape(len(cls), -1, cls.shape[-1])], axis=1
  )
  image_tokens = told.pop('image_tokens')[1]
  return types.SimpleNamespace(
    model=model,
    logits=logits,
    image_tokens=image_tokens,
    views={name: seen for name, (seen, _) in told.items()},
    features={
      name: joined(*out) if isinstance(out, tuple) else out for name, (_, out) in told.items()
    },
  )


def weights(directory):
  """Official name, without 'llma.', -> array."""
  return {key: tensor.read() for key, tensor in sources.open_source(directory).tensors.items()}


def config(directory):
  return json.loads((pathlib.Path(directory) / 'config.json').read_text())


def image_tokens(features, w, views, pool):
  """The image tokens of one picture from its views' features, by FACTS "Tokens of a view": float32[words,D]."""
  joined = []
  for name in (name for name in ('clip', 'convnext', 'dinov2') if name in features):
    first, cells = features[name][:, :1], features[name][:, 1:]
    if name == 'convnext':
      first = cells.mean(axis=1, keepdims=True)  # It has no class token.
    if cells.shape[1] == 64:  # 8 x 8 become 16 x 16, each repeated.
      cells = (
        cells.reshape(views, 8, 8, -1).repeat(2, axis=1).repeat(2, axis=2).reshape(views, 256, -1)
      )
    joined.append(np.concatenate([first, cells], axis=1))
  mixed = np.concatenate(joined, axis=-1)
  tokens = []
  for view, x in enumerate(mixed):
    if pool and view > 0:
      x = np.concatenate([x[:1], x[1:].reshape(8, 2, 8, 2, -1).mean(axis=(1, 3)).reshape(64, -1)])
    queries = (
      [_project(features['qformer'][view], w, 'qformer_proj')] if 'qformer' in features else []
    )
    tokens += [w['start_img'][0], *queries, _project(x, w, 'visual_proj'), w['end_img'][0]]
  return np.concatenate(tokens)


def _project(x, w, name):
  x = x @ w[f'{name}.0.weight'].T + w[f'{name}.0.bias']
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
  return x * w[f'{name}.1.weight'] + w[f'{name}.1.bias']


def logits(tokens, visual, w, said):
  """The official decoder (FACTS "LLaMA") on [BOS][visual float32[words,D]][text]: float32[T,vocab] of the last T."""
  text = w['tok_embeddings.weight'][tokens]
  x = np.concatenate([text[:1], visual, text[1:]])
  norm = lambda x, name: (
    x / np.sqrt(np.square(x).mean(-1, keepdims=True) + said['norm_eps']) * w[f'{name}.weight']
  )
  head = said['dim'] // said['n_heads']
  shared = said['n_heads'] // (said['n_kv_heads'] or said['n_heads'])
  frequency = (1 / said['rope_theta'] ** (np.arange(0, head, 2) / head)).astype(np.float32)
  turn = np.exp(
    1j
    * np.outer(
      np.arange(len(x), dtype=np.float32) * np.float32(said['rope_scaling'] or 1), frequency
    )
  )
  pairs = lambda x: (x[:, 0::2] + 1j * x[:, 1::2]) * turn
  rotate = lambda x: np.concatenate([pairs(x).real, pairs(x).imag], axis=1).astype(
    np.float32
  )  # Products need no order.
  hidden = np.triu(np.full((len(x), len(x)), -np.inf, np.float32), 1)
  for i in range(said['n_layers']):
    matrix = lambda name: w[f'layers.{i}.{name}.weight'].T
    y, out = norm(x, f'layers.{i}.attention_norm'), []
    each = lambda x: np.split(x, x.shape[1] // head, axis=1)
    query, key, value = (each(y @ matrix(f'attention.{name}')) for name in ('wq', 'wk', 'wv'))
    for h in range(said['n_heads']):
      scores = rotate(query[h]) @ rotate(key[h // shared]).T / np.float32(head**0.5) + hidden
      share = np.exp(scores - scores.max(-1, keepdims=True))
      out.append(share / share.sum(-1, keepdims=True) @ value[h // shared])
    x = x + np.concatenate(out, axis=1) @ matrix('attention.wo')
    y = norm(x, f'layers.{i}.ffn_norm')
    gate = y @ matrix('feed_forward.w1')
    x = x + (gate / (1 + np.exp(-gate)) * (y @ matrix('feed_forward.w3'))) @ matrix(
      'feed_forward.w2'
    )
  return norm(x[len(visual) :], 'norm') @ w['output.weight'].T


def bicubic(x, size):
  """Resizes [Y,X,3] by FACTS "Interpolation": A = -0.75, corners not aligned, no antialiasing, border clamped."""

  def weight(t):
    t = abs(t)
    return (
      (1.25 * t - 2.25) * t * t + 1
      if t <= 1
      else ((-0.75 * t + 3.75) * t - 6) * t + 3
      if t < 2
      else 0.0
    )

  matrix, scale = np.zeros((size, len(x))), len(x) / size
  for i in range(size):
    source = (i + 0.5) * scale - 0.5
    for tap in range(int(np.floor(source)) - 1, int(np.floor(source)) + 3):
      matrix[i, min(max(tap, 0), len(x) - 1)] += weight(source - tap)
  return np.einsum('iy,yxc,jx->ijc', matrix, x, matrix, optimize=True)


def crops(x, size):
  """[Y,X,3] -> the squares of an edge, row by row."""
  return [
    x[top : top + size, left : left + size]
    for top in range(0, len(x), size)
    for left in range(0, len(x), size)
  ]
