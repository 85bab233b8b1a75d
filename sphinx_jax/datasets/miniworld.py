"""Records of miniworld: its built scenes, with the turns that a task makes of them.

A task about two images gets a second one, which is drawn from the first with one change.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sphinx_jax import tasks
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample, Record, Source
from sphinx_jax.datasets import entries
from sphinx_jax.datasets.files import record_opened
from sphinx_jax.miniworld import pairs
from sphinx_jax.miniworld.reader import StoredScenes, location
from sphinx_jax.miniworld.scene import SPLITS
from sphinx_jax.tasks import common

# Task -> the kinds of scenes that it can ask about.
KINDS = {
  'caption': ('objects', 'words', 'page', 'figure'),
  'ocr': ('words',),
  'layout': ('page',),
  'pose': ('figure',),
  'vqa': ('objects',),
  'rec': ('objects',),
  'reg': ('objects',),
  'grounded_caption': ('objects',),
  'detection': ('objects',),
  'counting': ('objects',),
  'relation': ('objects',),
  'difference': ('objects',),
  'text': ('text',),
}
PAIRED = ('difference',)  # Tasks about two images.
_UNRELATED = 0.5  # Share of pairs of two scenes of their own; one thing differs in the others.
DOMAINS = ('real', 'synthetic')
INSTRUCTIONS = ('own', 'common')


def open_source(entry: Mapping[str, Any], data_dir: str | pathlib.Path) -> 'Miniworld':
  """Opens the source of a mixture entry.

  Args:
    entry: {task, split?, seed?, max_turns?, domain?, instructions?}, see `Miniworld`.
    data_dir: directory of `miniworld.builder.build`.

  Raises:
    SphinxError: a key is missing or unknown; unknown names or missing data.
  """
  optional = ('split', 'seed', 'domain', 'instructions')
  entries.check(entry, 'miniworld', required=('task',), optional=optional)
  return Miniworld(
    task=entry['task'],
    data_dir=data_dir,
    split=entry.get('split', 'train'),
    seed=entry.get('seed', 0),
    max_turns=entry.get('max_turns', 1),
    domain=entry.get('domain', 'real'),
    instructions=entry.get('instructions', 'own'),
  )


class Miniworld(Source):
  """The records of one task. Record i is a function of (seed, i) and of the built data.

  Args:
    task: name in KINDS.
    data_dir: directory of `miniworld.builder.build`.
    split: 'train', 'validation' or 'test'.
    seed: chooses the questions, their wording, and what differs between two images.
    max_turns: the largest number of questions about one image.
    domain: the captions to use, 'real' or 'synthetic'.
    kinds: kinds of scenes; (): all that the task can ask about.
    instructions: 'own' instructions of the task, or the 'common' one of tasks/common.py.

  Raises:
    SphinxError: unknown names or missing data.
  """

  name = 'miniworld'

  def __init__(
    self,
    task: str,
    data_dir: str | pathlib.Path,
    split: str = 'train',
    seed: int = 0,
    max_turns: int = 1,
    domain: str = 'real',
    kinds: Sequence[str] = (),
    instructions: str = 'own',
  ) -> None:
    for kind, value, choices in (
      ('task', task, KINDS),
      ('split', split, SPLITS),
      ('caption domain', domain, DOMAINS),
      ('instructions', instructions, INSTRUCTIONS),
    ):
      if value not in choices:
        raise errors.unknown(f'miniworld {kind}', value, choices)
    self.task, self.split, self.domain = task, split, domain
    self.seed, self.max_turns = seed, max_turns
    self._turns, self._is_common = tasks.TASKS[task].turns, instructions == 'common'
    self._scenes = StoredScenes(data_dir, split, kinds or KINDS[task])
    record_opened(*(location(data_dir, part) / 'metadata.json' for part in ('scenes', 'text')))

  def __len__(self) -> int:
    return len(self._scenes)

  def _read(self, index: int) -> tuple[str, tuple[bytes, ...], dict[str, Any], np.random.Generator]:
    """Returns (id, images, annotation, random numbers for the questions) of record `index`."""
    name, image, annotation = self._scenes[index]
    rng = np.random.default_rng((self.seed, index))
    if image is None:
      return name, (), annotation, rng
    annotation['caption'] = annotation[f'caption_{self.domain}']
    if self.task not in PAIRED:
      return name, (image,), annotation, rng
    if rng.random() < _UNRELATED:
      _, second, other = self._scenes[int(rng.integers(len(self)))]
      annotation['second'] = other['objects']
      return name, (image, second), annotation, rng
    images, lists = pairs.pair(annotation['objects'], image, rng)
    annotation['objects'], annotation['second'] = lists
    return name, images, annotation, rng

  def annotation(self, index: int) -> dict[str, Any]:
    """The whole annotation of record `index`, with 'caption' in this source's domain."""
    return self._read(index)[2]

  def __getitem__(self, index: int) -> Record:
    """Returns record `index`. Raises BadExample if the task has nothing to ask about the scene."""
    name, images, annotation, rng = self._read(index)
    turns = self._turns(annotation, rng, self.max_turns)
    if not turns:
      raise BadExample(
        'no turns', f"miniworld {name}: task '{self.task}' has nothing to ask about it"
      )
    if self._is_common:
      phrasings = tasks.TASKS[self.task].instructions
      turns = [common.with_common_instruction(turn, phrasings) for turn in turns]
    return Record(
      id=name,
      task=self.task,
      images=images,
      turns=tuple((turn.instruction, turn.answer) for turn in turns),
      truth=tuple(turn.truth for turn in turns),
      marks='inline' if len(images) > 1 else 'text',
    )
