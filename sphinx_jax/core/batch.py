"""The batch contract: the one place that says what a training step takes.

A row is ONE sequence of T positions that holds text and visual positions alike; it packs several examples, each with
its own segment number, and attention never crosses segments. N image slots belong to a row; `visual_index` says which
of the row's flattened visual tokens (N times the tokens of an image) stands at a position, -1 where there is text.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sphinx_jax.core import errors

# Name -> (dtype, whether it has the shape of the sequence). `images` is the only field with another shape.
FIELDS = {
  'tokens': np.int32,  # [B,T] token ids; 0 at visual positions and padding
  'targets': np.int32,  # [B,T] the next token inside the segment; 0 where there is none
  'loss_weight': np.float32,  # [B,T] weight of predicting targets[t] at position t
  'positions': np.int32,  # [B,T] position inside the example, counted over visual positions
  'segments': np.int32,  # [B,T] 1, 2, ... for each packed example, 0 for padding
  'visual_index': np.int32,  # [B,T] index into the row's flattened visual tokens, -1 for text
  'images': np.uint8,  # [B,N,Y,X,3] padded squares, zero where a slot is unused
  'task': np.int32,  # [B,T] index of the example's task in the mixture
}


def spec(rows: int, length: int, images: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes and dtypes of a batch of `rows` rows (B), `length` positions (T), `images` slots (N) of `size` pixels (Y=X)."""
  shapes = {name: (rows, length) for name in FIELDS} | {'images': (rows, images, size, size, 3)}
  return {name: jax.ShapeDtypeStruct(shapes[name], dtype) for name, dtype in FIELDS.items()}


def check(batch: Mapping[str, Any], visual_tokens: int) -> None:
  """Refuses a batch that breaks the contract.

  Args:
    batch: numpy arrays as in `FIELDS`.
    visual_tokens: tokens of one image, start and end tokens of every view included.

  Raises:
    SphinxError: names the field and what is wrong with it.
  """
  if set(batch) != set(FIELDS):
    raise errors.make(
      'batch',
      f'fields {sorted(batch)}',
      f'{sorted(FIELDS)}',
      'build batches with data.packing.assemble',
    )
  rows, length = batch['tokens'].shape
  slots, size = batch['images'].shape[1:3]
  for name, want in spec(rows, length, slots, size).items():
    if batch[name].shape != want.shape or batch[name].dtype != want.dtype:
      raise errors.make(
        f"batch field '{name}'",
        f'{batch[name].dtype}{list(batch[name].shape)}',
        f'{want.dtype}{list(want.shape)}',
        'see core/batch.py',
      )
  index = batch['visual_index']
  if index.min() < -1 or index.max() >= slots * visual_tokens:
    raise errors.make(
      "batch field 'visual_index'",
      f'values in [{index.min()}, {index.max()}]',
      f'[-1, {slots * visual_tokens - 1}] ({slots} images of {visual_tokens} tokens)',
      'the model config and the data disagree on the tokens of an image',
    )
  if np.any(batch['loss_weight'][batch['segments'] == 0] != 0):
    raise errors.make(
      "batch field 'loss_weight'", 'weight on padding', '0 where segments is 0', 'see core/batch.py'
    )


def interleave(
  ids: Sequence[int], images_at: Sequence[int], visual_tokens: int, first_image: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Places the visual tokens of images among the token ids of one example.

  This is the only place that decides where visual tokens stand: packing, generation and
  `Model.logits` all call it.

  Args:
    ids: token ids, BOS first.
    images_at: for each image, the number of ids before it, ascending: (1,) puts one image right
      after BOS, () is text alone.
    visual_tokens: visual tokens of one image.
    first_image: slot of the first image in its row; earlier slots belong to other examples.

  Returns:
    tokens: int32[S], the ids, 0 at visual positions; S = len(ids) + len(images_at) * visual_tokens.
    visual_index: int32[S], index into the row's flattened visual tokens, -1 for text.
  """
  length = len(ids) + len(images_at) * visual_tokens
  visual_index = np.full(length, -1, np.int32)
  for image, before in enumerate(images_at):
    begin = before + image * visual_tokens
    first = (first_image + image) * visual_tokens
    visual_index[begin : begin + visual_tokens] = np.arange(first, first + visual_tokens)
  tokens = np.zeros(length, np.int32)
  tokens[visual_index < 0] = ids
  return tokens, visual_index
