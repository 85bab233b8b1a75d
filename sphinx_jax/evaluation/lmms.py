"""Example of an adapter: our models in lmms-eval, which has many benchmarks of its own.

    lmms-eval --model sphinx_jax --model_args pretrained=DIR --tasks mme --batch_size 32

DIR is a run, one of its checkpoints, or a folder of released weights. This file is not an entry
point of sphinx_jax: lmms-eval finds `manifest` through the entry point 'lmms_eval.models' in
setup.py.

It was checked with lmms_eval 0.7.3 (https://github.com/EvolvingLMMs-Lab/lmms-eval) in an
environment of its own (`pip install -e '.[lmms]'` without constraints.txt). It cannot be installed
together with our pinned versions, because its wandb needs protobuf < 7. Therefore
tests/evaluation/test_lmms.py uses a stub of the few names that are imported from it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import images
from sphinx_jax.data.record import MARK
from sphinx_jax.data.slots import Slots
from sphinx_jax.generate import load

# Batches per call of the model, which sorts the prompts of a call by length. The images of a call
# are in memory.
_BATCHES_PER_CALL = 4
_MAX_NEW_TOKENS = 1024  # Used if the benchmark sets no limit.


class Sphinx(lmms):
  """A model on the devices of this process.

  Args:
    pretrained: directory of a run or of one of its checkpoints, or a folder of released weights.
    dtype: see `sphinx_jax.load`.
    mesh: see `sphinx_jax.load`.
    batch_size: most prompts decoded together.
    device: passed by lmms-eval, and ignored, because JAX chooses the device.
    max_batch_size: passed by lmms-eval, and ignored.

  Raises:
    SphinxError: there is no checkpoint, or the batch size is not a positive number.
  """

  is_simple = True  # lmms-eval then passes a question as one text with images, not as messages.

  def __init__(
    self,
    pretrained: str,
    dtype: str | None = None,
    mesh: str | None = None,
    batch_size: int | str = 32,
    device: str | None = None,
    max_batch_size: int | None = None,
  ) -> None:
    super().__init__()
    del device, max_batch_size
    if not str(batch_size).isdigit() or int(batch_size) < 1:
      raise errors.make(
        'lmms-eval', f'batch_size {batch_size!r}', 'a number', 'set it, for example --batch_size 32'
      )
    self._sphinx = load.load_model(str(pretrained), dtype=dtype, mesh=mesh)
    self._batch_size = int(batch_size)

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Returns the answers in the order of the requests.

    Args:
      requests: their `args` are (context, generation kwargs, doc_to_visual, doc id, task, split).

    Raises:
      SphinxError: a question has a video or a sound, beam search is requested, or as for
        `Model.complete`.
    """
    groups: dict[str, list[int]] = {}  # Requests with the same generation kwargs.
    for i, request in enumerate(requests):
      groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
    texts, size = [''] * len(requests), _BATCHES_PER_CALL * self._batch_size
    with Progress(total=len(requests), what='lmms-eval', unit='answers') as progress:
      for group in groups.values():
        for begin in range(0, len(group), size):
          chunk = group[begin : begin + size]
          for i, text in zip(chunk, self._answers([requests[i].args for i in chunk])):
            texts[i] = text
            self.cache_hook.add_partial('generate_until', requests[i].args[:2], text)
          progress.update(len(chunk))
    return texts

  def _answers(self, arguments: Sequence[tuple]) -> list[str]:
    """Answers requests with the same generation kwargs."""
    until, sampling = _sampling(arguments[0][1])
    pixels = [
      self._images(visual, doc, task, split) for _, _, visual, doc, task, split in arguments
    ]
    dialogs = [
      [(_question(context, len(of_question)), None)]
      for (context, *_), of_question in zip(arguments, pixels)
    ]
    texts = self._sphinx.answers(dialogs, pixels, batch_size=self._batch_size, **sampling)
    return [_cut(text, until) for text in texts]

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Raises SphinxError: likelihoods are not supported.

    lmms_eval 0.7.3 converts the numbers to text (`unwrap_generation_output`), so it could not score
    them for any model.
    """
    raise errors.make(
      'lmms-eval',
      f'{len(requests)} requests for likelihoods, which are not supported',
      'requests for answers',
      'leave the task out',
    )

  def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
    """Raises SphinxError: questions of several rounds are not supported.

    A multi-round task builds each round from the previous answer and brings new images.
    """
    raise errors.make(
      'lmms-eval',
      f'{len(requests)} questions of several rounds, which are not supported',
      'questions of one round',
      'leave the task out',
    )

  def _images(self, visual: Callable | None, doc: int, task: str, split: str) -> list[Slots]:
    """Returns the images of a question as the model sees them."""
    visuals = visual(self.task_dict[task][split][doc]) if visual is not None else None
    visuals = [item for item in visuals or [] if item is not None]
    if not all(isinstance(item, Image.Image) for item in visuals):
      raise errors.make(
        f"lmms-eval task '{task}', document {doc}",
        f'{[type(item).__name__ for item in visuals]}',
        'images alone',
        'leave the task out',
      )
    return [self._sphinx.slot_rule(images.to_rgb(item, self._sphinx.alpha)) for item in visuals]


def manifest() -> Any:
  """Returns the registration of the model, for lmms-eval, which finds it by the entry point."""
  from lmms_eval.models import registry_v2  # lmms-eval itself is still starting at import time.

  return registry_v2.ModelManifest(
    model_id='sphinx_jax', simple_class_path=f'{__name__}.{Sphinx.__name__}'
  )


def _question(context: str, images: int) -> str:
  """The text of a question, with the marks of several images if each has one."""
  if images > 1 and context.count(MARK) == images:
    return context.strip()
  return context.replace(MARK, '').strip()


def _sampling(kwargs: dict) -> tuple[list[str], dict[str, Any]]:
  """Returns (texts that end an answer, arguments of `Model.complete`).

  Args:
    kwargs: lmms-eval's generation kwargs.

  Raises:
    SphinxError: beam search is requested.
  """
  if int(kwargs.get('num_beams') or 1) > 1:
    raise errors.make(
      'lmms-eval', f'num_beams={kwargs["num_beams"]}', '1', 'set --gen_kwargs num_beams=1'
    )
  until = kwargs.get('until') or []
  temperature = float(kwargs.get('temperature') or 0) if kwargs.get('do_sample', True) else 0.0
  sampling = {
    'max_new_tokens': int(kwargs.get('max_new_tokens') or _MAX_NEW_TOKENS),
    'temperature': temperature,
    'top_p': float(kwargs.get('top_p') or 1.0),
  }
  return [until] if isinstance(until, str) else list(until), sampling


def _cut(text: str, until: Sequence[str]) -> str:
  """Returns the text before the first of the texts that end an answer."""
  for end in until:
    text = text.split(end)[0] if end else text
  return text.strip()
