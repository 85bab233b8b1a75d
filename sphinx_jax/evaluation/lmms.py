"""SPHINX as a model of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval), which asks its many benchmarks itself.

    lmms-eval --model sphinx_jax --model_args pretrained=DIR --tasks mme --batch_size 32

DIR is a run of ours or an official SPHINX folder. lmms-eval finds `manifest` by the entry point 'lmms_eval.models' of
setup.py. Checked with lmms_eval 0.7.3 in an environment of its own (`pip install -e '.[lmms]'` without constraints.txt):
beside our pins it cannot be installed, as its wandb wants protobuf < 7. So tests/evaluation/test_lmms.py uses a stub of the
few names taken from it.
"""

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from lmms_eval.api.model import lmms
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import images
from sphinx_jax.generate import load

_BATCHES = (
  4  # Given to the generator at once, which sorts them by length; their pictures are in memory.
)
_MOST = 1024  # Tokens of an answer, where the benchmark sets no limit.


class Sphinx(lmms):
  """One model, on this process's devices.

  Args:
    pretrained: directory of a run or of one of its checkpoints, or an official folder.
    dtype, mesh: as of `sphinx_jax.load`.
    batch_size: most prompts decoded together.
    device: is JAX's to choose; taken because lmms-eval gives it.
    max_batch_size: likewise.

  Raises:
    SphinxError: no checkpoint; a batch size that is no number.
  """

  is_simple = True  # Questions come as one text and pictures, not as chat messages.

  def __init__(
    self,
    pretrained: str,
    dtype: str | None = None,
    mesh: str | None = None,
    batch_size: int | str = 32,
    device: str | None = None,
    max_batch_size: int | None = None,
  ):
    super().__init__()
    del device, max_batch_size
    if not str(batch_size).isdigit() or int(batch_size) < 1:
      raise errors.make(
        'lmms-eval', f'batch_size {batch_size!r}', 'a number', 'give --batch_size 32, for instance'
      )
    self._sphinx = load.load_model(str(pretrained), dtype=dtype, mesh=mesh)
    self._batch_size = int(batch_size)

  def generate_until(self, requests: Sequence[Any]) -> list[str]:
    """Answers in the order of the requests, whose args are (context, generation kwargs, doc_to_visual, doc id, task, split).

    Raises:
      SphinxError: a question with several pictures or a film; beam search; as `Model.complete`.
    """
    groups: dict[str, list[int]] = {}
    for i, request in enumerate(requests):
      groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(i)
    texts, size = [''] * len(requests), _BATCHES * self._batch_size
    with Progress(total=len(requests), what='lmms-eval', unit='answers') as bar:
      for group in groups.values():
        for begin in range(0, len(group), size):
          chunk = group[begin : begin + size]
          for i, text in zip(chunk, self._answers([requests[i].args for i in chunk])):
            texts[i] = text
            self.cache_hook.add_partial('generate_until', requests[i].args[:2], text)
          bar.update(len(chunk))
    return texts

  def _answers(self, asked: Sequence[tuple]) -> list[str]:
    until, sampling = _sampling(asked[0][1])
    turns = [[(_question(context), None)] for context, *_ in asked]
    pictures = [self._picture(visual, doc, task, split) for _, _, visual, doc, task, split in asked]
    texts = self._sphinx.answers(
      turns, pictures, batch_size=self._batch_size, **sampling
    )
    return [_cut(text, until) for text in texts]

  def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
    """Not there: lmms_eval 0.7.3 makes text of the numbers (`unwrap_generation_output`), so no model's would be scored."""
    raise errors.make(
      'lmms-eval',
      f'{len(requests)} texts to find likely',
      'questions to answer',
      'leave the task out',
    )

  def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
    """Not there: what comes in a later round is a function of the answer before, with pictures of its own."""
    raise errors.make(
      'lmms-eval',
      f'{len(requests)} questions of several rounds',
      'questions of one round',
      'leave the task out',
    )

  def _picture(self, visual: Callable | None, doc: int, task: str, split: str) -> np.ndarray | None:
    """The one picture of a question, as small as the model sees it, or None."""
    shown = visual(self.task_dict[task][split][doc]) if visual is not None else None
    shown = [] if shown is None else [picture for picture in shown if picture is not None]
    if len(shown) > 1 or not all(isinstance(picture, Image.Image) for picture in shown):
      raise errors.make(
        f"lmms-eval task '{task}', document {doc}",
        f'{[type(picture).__name__ for picture in shown]}',
        'one picture or none',
        'leave the task out; SPHINX sees one picture',
      )
    side = self._sphinx.config.image_size
    return images.padded_resize(np.asarray(shown[0].convert('RGB')), side) if shown else None


def manifest() -> Any:
  """What lmms-eval asks the entry point for."""
  from lmms_eval.models import registry_v2  # Not there yet while lmms-eval itself starts.

  return registry_v2.ModelManifest(
    model_id='sphinx_jax', simple_class_path=f'{__name__}.{Sphinx.__name__}'
  )


def _question(context: str) -> str:
  return context.replace('<image>', '').strip()


def _sampling(kwargs: dict) -> tuple[list[str], dict[str, Any]]:
  """(texts that end an answer, arguments of `Model.complete`) from lmms-eval's generation kwargs."""
  if int(kwargs.get('num_beams') or 1) > 1:
    raise errors.make(
      'lmms-eval', f'num_beams={kwargs["num_beams"]}', '1', 'give --gen_kwargs num_beams=1'
    )
  until = kwargs.get('until') or []
  temperature = float(kwargs.get('temperature') or 0) if kwargs.get('do_sample', True) else 0.0
  return [until] if isinstance(until, str) else list(until), dict(
    max_new_tokens=int(kwargs.get('max_new_tokens') or _MOST),
    temperature=temperature,
    top_p=float(kwargs.get('top_p') or 1.0),
  )


def _cut(text: str, until: Sequence[str]) -> str:
  for end in until:
    text = text.split(end)[0] if end else text
  return text.strip()
