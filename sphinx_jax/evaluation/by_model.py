"""Answers of a model on the devices of this process."""

import types
from collections.abc import Mapping, Sequence
from typing import Any

from sphinx_jax.core import text
from sphinx_jax.data.dialog import Encoded
from sphinx_jax.data.record import BadExample
from sphinx_jax.data.slots import Slots
from sphinx_jax.evaluation.benchmarks.benchmark import Question
from sphinx_jax.generate.model import BATCH_SIZE, Model

_BATCHES_PER_CALL = 4  # The model sorts the prompts of a call by length.
_NO_OPTIONS = types.MappingProxyType({})


class ByModel:
  """Answers that depend neither on each other nor on the batches.

  Also with a temperature: the random stream of a question comes from its id.

  Args:
    model: the model.
    batch_size: most prompts decoded together.
    options: further keyword arguments of `Model.complete`, for instance `temperature`.
  """

  def __init__(
    self,
    model: Model,
    batch_size: int = BATCH_SIZE,
    options: Mapping[str, Any] = _NO_OPTIONS,
  ) -> None:
    self._model, self._batch_size, self._options = model, batch_size, options
    self.per_call = _BATCHES_PER_CALL * batch_size

  def read_image(self, data: bytes) -> Slots:
    """Decodes an image file as the model sees it. Full pages would fill the memory.

    Raises:
      BadExample: an unreadable image.
    """
    return self._model.read_image(data)

  def prompt(self, question: Question, images: int, prefix: str) -> Encoded:
    """Tokenizes a question about some images.

    Raises:
      BadExample: it is too long.
    """
    model, turns = self._model, [*question.history, (question.prompt, None)]
    prompt = model.prompt_of(turns, images, prefix, question.marks)
    length = len(prompt.ids) + len(prompt.images_at) * model.visual_tokens
    if length >= model.max_length:
      raise BadExample('prompt too long', f'{length} positions of {model.max_length}')
    return prompt

  def answer(
    self,
    questions: Sequence[Question],
    prompts: Sequence[Encoded],
    images: Sequence[Sequence[Slots]],
    max_new_tokens: int,
  ) -> list[str]:
    """Answers questions with one call of the model."""
    lengths = [question.answer_length for question in questions]
    return self._model.complete(
      prompts,
      images,
      max_new_tokens=max_new_tokens,
      expected=None if None in lengths else lengths,
      batch_size=self._batch_size,
      streams=[int(text.digest(question.id)[:8], 16) for question in questions],
      **self._options,
    )
