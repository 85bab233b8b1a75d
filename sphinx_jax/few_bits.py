"""Quantizes a model: its checkpoint in few bits, the sizes, and what that does to its losses."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from sphinx_jax.checkpoint import merged, quantizing, stream
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import text
from sphinx_jax.evaluation import agreement
from sphinx_jax.generate import load as loading


class Full(NamedTuple):
  """Weights to quantize, not read yet.

  Attributes:
    arrays: path -> array.
    bundle: config, tokenizer and dialog.
    meta: where they come from, for the meta of the result.
  """

  arrays: Mapping[str, stream.Array]
  bundle: Bundle
  meta: dict[str, Any]


def open_full(place: str) -> Full:
  """Opens a checkpoint of sphinx_jax, or BASE+ADAPTER, to quantize it.

  Raises:
    SphinxError: it holds adapters alone.
  """
  opened = merged.open_checkpoint(place)
  return Full(opened.arrays, opened.bundle, {'parents': [opened.source]})


def quantize(
  full: Full,
  output: str | os.PathLike | None,
  form: str,
  examples: str | None = None,
  dry_run: bool = False,
) -> None:
  """Writes a checkpoint in few bits, and prints its size beside that of the full one.

  Args:
    full: from `open_full`, or foreign weights.
    output: directory of the checkpoint, in the form of a run's directory.
    form: name in `models.quantized.STORED`.
    examples: a JSONL file, or `agreement.EMBEDDED`: compare losses on them, too.
    dry_run: print the sizes alone.

  Raises:
    SphinxError: the weights are in few bits already, a kernel is not finite, the output holds a
      checkpoint, or the examples cannot be read.
  """
  bundle = quantizing.bundle_of(full.bundle, form)
  _, sizes = quantizing.plan(full.arrays, bundle)
  records = agreement.examples(examples) if examples else []
  if not dry_run:
    quantizing.write(output, full.arrays, bundle, full.meta)
  print(text.table(sizes.rows(), 'lrrr'))
  if dry_run or not records:
    return
  # One model after the other, so that both need not fit at once.
  before = agreement.score(loading.model_of(full.bundle, full.arrays), records)
  after = agreement.score(loading.load_model(output), records)
  print(text.table(agreement.rows(before, after, form), 'lrr'))
