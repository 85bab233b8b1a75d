"""The batch contract: the fields, shapes and dtypes that a training step takes.

A row is one sequence of T positions, each a text token or a visual token. It packs several
examples, each with its own segment number, and attention never crosses segments. A row has N image
slots. `visual_index` is the index of a position's visual token among the row's flattened visual
tokens (N times the tokens of an image), or -1 for a text token.

In a batch of preference pairs, the segments 2k - 1 and 2k of a row are the chosen and the rejected
answer to one question. Both have the question's text, and the same visual tokens.

A run that keeps the features of frozen encoders has them in place of pixels (`with_features`).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from sphinx_jax.core import errors

# Name -> dtype. All fields but `images` and `image_size` have the shape [B,T].
FIELDS = {
  'tokens': np.int32,  # [B,T] token ids; 0 at visual positions and padding
  'targets': np.int32,  # [B,T] the next token in the segment, or 0 if there is none
  'loss_weight': np.float32,  # [B,T] weight of predicting targets[t] at position t
  'positions': np.int32,  # [B,T] position inside the example, visual positions included
  'segments': np.int32,  # [B,T] 1, 2, ... for each packed example, 0 for padding
  'visual_index': np.int32,  # [B,T] index into the row's flattened visual tokens, -1 for text
  'images': np.uint8,  # [B,N,Y,X,3] each in the upper left corner of its slot, zero in unused slots
  'image_size': np.int32,  # [B,N,2] rows and columns of the slot's image; 0 in unused slots
  'task': np.int32,  # [B,T] index of the example's task in the mixture
}


def spec(
  batch_size: int, seq_len: int, images: int, image_size: int
) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns the shape and dtype of every field.

  Args:
    batch_size: rows (B).
    seq_len: positions of a row (T).
    images: image slots of a row (N).
    image_size: side of an image slot in pixels (Y = X).
  """
  structs = {
    name: jax.ShapeDtypeStruct((batch_size, seq_len), dtype) for name, dtype in FIELDS.items()
  }
  pixels = (batch_size, images, image_size, image_size, 3)
  structs['images'] = jax.ShapeDtypeStruct(pixels, FIELDS['images'])
  structs['image_size'] = jax.ShapeDtypeStruct((batch_size, images, 2), FIELDS['image_size'])
  return structs


def with_features(batch: Mapping[str, Any], features: Any) -> dict[str, Any]:
  """Returns a batch whose images are encoded: `features` [B,N,F] takes the place of `images`.

  Args:
    batch: the fields, or their shapes.
    features: what frozen encoders make of each slot's image, in the compute dtype; zero in unused
      slots. Or its shape.
  """
  fields = {name: field for name, field in batch.items() if name != 'images'}
  return {**fields, 'features': features}


def check(batch: Mapping[str, Any], visual_tokens: int) -> None:
  """Checks a batch against the contract.

  Args:
    batch: numpy arrays as in `FIELDS`.
    visual_tokens: visual tokens of one image, with the start and end tokens of every view.

  Raises:
    SphinxError: a field is missing, unknown or wrong; the message has its name.
  """
  fields = with_features(FIELDS, None) if 'features' in batch else FIELDS
  if set(batch) != set(fields):
    raise errors.make(
      'batch',
      f'fields {sorted(batch)}',
      str(sorted(fields)),
      'build batches with data.packing.assemble',
    )
  batch_size, seq_len = batch['tokens'].shape
  slots, image_size = batch.get('images', batch.get('features')).shape[1:3]
  for name, want in spec(batch_size, seq_len, slots, image_size).items():
    if name not in batch:  # The compiled update checks the shape of features.
      continue
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
      'use the same model config for the data and the model',
    )
  if np.any(batch['loss_weight'][batch['segments'] == 0] != 0):
    raise errors.make(
      "batch field 'loss_weight'", 'weight on padding', '0 where segments is 0', 'see core/batch.py'
    )


def interleave(
  ids: Sequence[int], images_at: Sequence[int], visual_tokens: int, first_image: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Places the visual tokens of images among the token ids of one example.

  Packing, generation and `Model.logits` all call this function, so they agree on the positions of
  visual tokens.

  Args:
    ids: token ids, BOS first.
    images_at: for each image, the number of ids before it, ascending: (1,) puts one image right
      after BOS, () is text without images.
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
