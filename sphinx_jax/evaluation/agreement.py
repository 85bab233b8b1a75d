"""How near a model in few bits is to the same model in full: losses and likeliest tokens."""

import json
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from sphinx_jax import tasks
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample, Record
from sphinx_jax.datasets import jsonl
from sphinx_jax.generate.model import Model, round_up
from sphinx_jax.miniworld import corpus, scene
from sphinx_jax.training import loss

EMBEDDED = 'miniworld'  # In place of a file: scenes of miniworld, and texts about them.
_EXAMPLES = 16  # Most examples that are compared.
# Kind of a scene and what is asked about it.
_ASKED = (('objects', 'caption'), ('objects', 'vqa'), ('words', 'ocr'), ('page', 'caption'))
_BUCKET = 128  # Lengths are padded to multiples of it, so that few programs are compiled.


class Scores(NamedTuple):
  """What a model makes of the labels of all examples.

  Attributes:
    losses: float32[labels], in nats.
    likeliest: int32[labels], the likeliest token in place of each.
  """

  losses: np.ndarray
  likeliest: np.ndarray


def examples(place: str) -> list[Record]:
  """The first examples of a JSONL file, or the embedded ones.

  Raises:
    SphinxError: the file cannot be read, or has no example.
  """
  if place == EMBEDDED:
    return _embedded()
  source, found = jsonl.open_source({'path': os.path.abspath(place)}), []
  for index in range(len(source)):
    try:
      record = source[index]
    except BadExample:
      continue
    if len(record.images) <= 1:  # Of several, `Model.logits` has no places.
      found.append(record)
    if len(found) == _EXAMPLES:
      break
  if not found:
    raise errors.make(
      f"--verify '{place}'", 'no example', 'examples with at most one image', 'give another file'
    )
  return found


def _embedded() -> list[Record]:
  """Scenes and texts of the validation split, which no run trains on."""
  records = []
  for kind, task in _ASKED:
    for row in scene.rows(kind, 'validation', 0, _EXAMPLES // (len(_ASKED) + 1)):
      annotation = json.loads(row['annotation'])
      annotation['caption'] = annotation['caption_real']
      turns = tasks.TASKS[task].turns(annotation, np.random.default_rng(0), 1)
      asked = tuple((turn.instruction, turn.answer) for turn in turns)
      if asked:
        records.append(Record(f'{row["id"]} {task}', task, (row['image'],), asked, ()))
  for number, text in enumerate(corpus.texts('validation', _EXAMPLES - len(records))):
    records.append(Record(f'text {number}', 'text', (), ((None, text),), ()))
  return records


def score(model: Model, records: Sequence[Record]) -> Scores:
  """Scores the labels of examples, one example at a time.

  Images are left out for a model without encoders, and examples that are too long for the model.

  Raises:
    SphinxError: no example fits into the model.
  """
  losses, likeliest = [], []
  for record in records:
    images = [model.read_image(data) for data in record.images] if model.visual_tokens else []
    encoded = model.encode_dialog(record.turns, len(images), record.marks)
    padded = round_up(len(encoded.ids), _BUCKET)
    slots = len(images) * model.slot_rule.count if images else 0
    if padded + slots * model.visual_tokens > model.max_length:
      continue
    tokens = np.pad(encoded.ids, (0, padded - len(encoded.ids)))[None].astype(np.int32)
    scores = _scores(model.logits(tokens, [images]), np.roll(tokens, -1))
    is_label = np.flatnonzero(encoded.weights[1:])
    for found, array in zip((losses, likeliest), scores):
      found.append(np.asarray(array)[0, is_label])
  if not losses:
    raise errors.make(
      '--verify',
      'examples that are all too long',
      f'some of at most {model.max_length} positions',
      'give shorter ones',
    )
  return Scores(np.concatenate(losses), np.concatenate(likeliest))


@jax.jit
def _scores(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Losses [B,T] and the likeliest tokens [B,T] of all positions."""
  return loss.cross_entropy(logits, targets), logits.argmax(axis=-1)


def rows(full: Scores, few: Scores, form: str) -> list[tuple[str, ...]]:
  """The rows of a table, the header first."""
  equal = np.mean(full.likeliest == few.likeliest)
  return [
    (f'{len(full.losses)} labels', 'loss, nats', 'same likeliest token'),
    ('full', f'{full.losses.mean():.4f}', ''),
    (form, f'{few.losses.mean():.4f}', f'{equal:.2%}'),
  ]
