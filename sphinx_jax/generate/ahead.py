"""Compiles the programs of an answer in threads, while images are encoded."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import jax
import numpy as np

from sphinx_jax.generate import decode


class Programs(NamedTuple):
  """The jitted functions of generate/decode.py, whose first arguments are bound."""

  prefill: Callable
  begin: Callable
  decode: Callable


class Size(NamedTuple):
  """The programs that a batch needs.

  Attributes:
    rows: prompts that are decoded together.
    width: positions of a prompt with its padding.
    slots: positions of the cache.
    visual_tokens: of all images of a row; 0: there are none.
    sample: whether tokens are sampled.
  """

  rows: int
  width: int
  slots: int
  visual_tokens: int
  sample: bool


class Compiler:
  """Compiles programs before they are called. Their later calls find them compiled.

  Args:
    programs: jitted functions.
    params: their parameters, on one device.
    visual: shape [D] and dtype of a visual token.
  """

  def __init__(self, programs: Programs, params: dict, visual: jax.ShapeDtypeStruct) -> None:
    self._programs, self._params, self._visual = programs, params, visual
    self._begun: dict[Size, Future] = {}
    arrays = [leaf for leaf in jax.tree.leaves(params) if getattr(leaf, 'committed', False)]
    self._sharding = arrays[0].sharding if arrays else None
    self._pool = ThreadPoolExecutor(1)

  def begin(self, size: Size) -> Future:
    """Begins to compile the programs of a size, unless it has.

    Returns:
      A future that is done when they are compiled. A call of the programs raises its error, too.
    """
    if size not in self._begun:
      self._begun[size] = self._pool.submit(self._compile, size)
    return self._begun[size]

  def _compile(self, size: Size) -> None:
    visual = None
    if size.visual_tokens:
      shape = size.rows, size.visual_tokens, *self._visual.shape
      visual = self._on_device(jax.ShapeDtypeStruct(shape, self._visual.dtype))
    # Whether an array is of numpy or of JAX, and on which device, makes programs differ.
    tokens = np.zeros((size.rows, size.width), np.int32)
    lengths = np.zeros(size.rows, np.int32)
    prefill = self._programs.prefill.trace(self._params, tokens, tokens, lengths, visual)
    with ThreadPoolExecutor(1) as pool:
      compiled = pool.submit(lambda: prefill.lower().compile())
      logits, cache = jax.tree.map(self._on_device, prefill.out_info)
      begin = self._programs.begin.trace(cache, logits, lengths, length=size.slots)
      carry = jax.tree.map(self._on_device, begin.out_info)
      keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), size.rows))
      rows = decode.Rows(lengths, lengths, keys)
      last = self._programs.decode.trace(
        self._params, carry, rows, 0.0, 1.0, np.int32(0), sample=size.sample
      )
      begin.lower().compile()
      last.lower().compile()
      compiled.result()

  def _on_device(self, array: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=self._sharding)
