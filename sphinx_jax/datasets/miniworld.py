"""Records of miniworld: opens its built splits and asks a task for the turns of each annotation."""

from __future__ import annotations

import json

import numpy as np

from sphinx_jax import tasks
from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample, Record, Source
from sphinx_jax.miniworld.scene import SPLITS

KINDS = {  # task -> the kinds of scenes it can ask about
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
  'text': ('text',),
}
DOMAINS = ('real', 'synthetic')


def open_source(entry, data_dir) -> Miniworld:
  """The source of a mixture entry.

  entry: mapping with task, and perhaps split ("train"), seed (0), max_turns (1), domain ("real"; captions only).
  data_dir: where `miniworld.builder.build` put the data. Raises SphinxError for unknown names and missing data.
  """
  return Miniworld(
    task=entry['task'],
    data_dir=data_dir,
    split=entry.get('split', 'train'),
    seed=entry.get('seed', 0),
    max_turns=entry.get('max_turns', 1),
    domain=entry.get('domain', 'real'),
  )


class Miniworld(Source):
  """Random access to the records of one task; record i is a function of (seed, i) and of the built data.

  Scenes of several kinds are interleaved in proportion, so that any stretch of records holds them all.
  """

  name = 'miniworld'

  def __init__(self, task, data_dir, split='train', seed=0, max_turns=1, domain='real'):
    for what, value, choices in (
      ('task', task, KINDS),
      ('split', split, SPLITS),
      ('caption domain', domain, DOMAINS),
    ):
      if value not in choices:
        raise errors.unknown(f'miniworld {what}', value, choices)
    self.task, self.split, self.seed, self.max_turns, self.domain = (
      task,
      split,
      seed,
      max_turns,
      domain,
    )
    self._turns = tasks.TASKS[task].turns
    self._parts = _open(data_dir, split, KINDS[task])
    places = [
      ((row + 0.5) / len(part), k, row)
      for k, part in enumerate(self._parts)
      for row in range(len(part))
    ]
    self._order = np.array([place[1:] for place in sorted(places)], np.int32)

  def __len__(self):
    return len(self._order)

  def _row(self, index):
    if not 0 <= index < len(self):
      raise IndexError(f'record {index} of {len(self)}')  # ends plain iteration
    part, row = self._order[index]
    return self._parts[part][int(row)], int(row)

  def _annotation(self, row, number):
    if self.task == 'text':
      return f'{self.split}_text/{number:06d}', {'kind': 'text', 'text': row['text'].decode()}
    annotation = json.loads(row['annotation'])
    annotation['caption'] = annotation[f'caption_{self.domain}']
    return row['id'].decode(), annotation

  def scene(self, index: int) -> tuple[bytes, dict]:
    """(picture as PNG, whole annotation) of record `index`, whether or not the task has something to ask about it."""
    row, number = self._row(index)
    return row['image'], self._annotation(row, number)[1]

  def annotation(self, index: int) -> dict:
    """The whole annotation of record `index`, with "caption" in this source's domain."""
    return self._annotation(*self._row(index))[1]

  def __getitem__(self, index: int) -> Record:
    row, number = self._row(index)
    name, annotation = self._annotation(row, number)
    turns = self._turns(annotation, np.random.default_rng((self.seed, index)), self.max_turns)
    if not turns:
      raise BadExample(
        'no turns', f"miniworld {name}: task '{self.task}' has nothing to ask about it"
      )
    return Record(
      name,
      self.task,
      row.get('image'),
      tuple((turn.instruction, turn.answer) for turn in turns),
      tuple(turn.truth for turn in turns),
    )


def _open(data_dir, split, kinds):
  """Random access to the rows of each kind, pictures left as PNG bytes."""
  import tensorflow_datasets as tfds  # takes a second: only who reads data pays

  from sphinx_jax.miniworld.builder import location

  text = kinds == ('text',)
  folder = location(data_dir, 'text' if text else 'scenes')
  if not (folder / 'dataset_info.json').exists():
    raise errors.make(
      'miniworld',
      f'data_dir={str(data_dir)!r} without {folder.relative_to(data_dir)}',
      'a finished build there',
      'correct data_dir, or build it with sphinx_jax.miniworld.builder.build(data_dir)',
    )
  builder = tfds.builder_from_directory(folder)
  names = [split] if text else [f'{split}_{kind}' for kind in kinds]
  decoders = None if text else {'image': tfds.decode.SkipDecoding()}
  return [builder.as_data_source(name, decoders=decoders) for name in names]
