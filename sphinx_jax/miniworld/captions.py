"""The two caption domains over the same scenes.

"synthetic" captions are clean and templated and name everything with its place. "real" captions are
like alt-texts on web pages: partial, rambling, in lower case, with file names and shop talk, and
sometimes with a wrong fact. Encoders learn from real captions, so these stay informative.
They have rough and fine places, written words, limbs, and numbers as in the metadata of content
management systems: focal points and crops.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from sphinx_jax.core import coordinates
from sphinx_jax.miniworld import places
from sphinx_jax.miniworld.draw import COLORS, Box
from sphinx_jax.miniworld.figures import ACTIONS
from sphinx_jax.miniworld.objects import NAMES
from sphinx_jax.miniworld.pages import LABELS
from sphinx_jax.miniworld.words import LEXICON

WRONG = 0.1  # Share of real captions with a wrong fact.
NUMBERS = 0.85  # Share of real captions that end in a focal point or crop.
_MAX_WORDS = 32  # Longer captions get no numbers.
_BEFORE = (
  'photo of {}',
  'image: {}',
  '{file}.jpg {}',
  'stock picture {}',
  'my {}',
  'look, {}',
  'new! {}',
  'clip art {}',
  'free vector {}',
  'img {n} {}',
  'picture with {}',
  'hand drawn {}',
  'best of {}',
  '{}',
  '{}',
  '{}',
  '{}',
  '{}',
)
_AFTER = (
  '{}, free shipping',
  '{} - click to enlarge',
  '{} | buy now',
  '{} by anna',
  '{} (set of {n})',
  '{} royalty free',
  '{} wallpaper',
  '{} only today',
  '{} no {n}',
  '{}...',
  '{}',
  '{}',
  '{}',
  '{}',
  '{}',
  '{}',
)


_T = TypeVar('_T')
Annotation = dict[str, Any]
# A real caption, the thing that its numbers are about, and the place of that thing.
Description = tuple[str, str, Box]


def _choose(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
  return choices[int(rng.integers(len(choices)))]


def _join_list(parts: Sequence[str]) -> str:
  return parts[0] if len(parts) == 1 else ', '.join(parts[:-1]) + ' and ' + parts[-1]


def label_words(label: str) -> str:
  """A DocLayNet label as words: "Section-header" -> "section header"."""
  return label.lower().replace('-', ' ')


# Synthetic


def _synthetic_objects(scene: Annotation, rng: np.random.Generator) -> str:
  parts = []
  for thing in sorted(scene['objects'], key=lambda thing: places.center(thing['box'])[::-1]):
    name = f'a {thing["size"]} {thing["color"]} {thing["name"]}'  # Sizes are small and big.
    parts.append(f'{name} {places.phrase(thing["box"])}')
  return _join_list(parts) + '.'


def _synthetic_words(scene: Annotation, rng: np.random.Generator) -> str:
  return (
    _join_list(
      [
        f'the word {word["text"]} in {word["color"]} {places.phrase(word["box"])}'
        for word in scene['words']
      ]
    )
    + '.'
  )


def _synthetic_page(scene: Annotation, rng: np.random.Generator) -> str:
  return (
    'a page with '
    + _join_list(
      [f'{label_words(block["label"])} {places.row(block["box"])}' for block in scene['blocks']]
    )
    + '.'
  )


def _action(person: Annotation) -> str:
  """The action in a sentence: "waving with the left hand", "with both arms up"."""
  side = person['side']
  return {
    'waving': f'waving with the {side} hand',
    'kicking': f'kicking with the {side} leg',
    'arms up': 'with both arms up',
    'arms out': 'with both arms out',
    'hands on hips': 'with hands on hips',
  }.get(person['action'], person['action'])


def _synthetic_figure(scene: Annotation, rng: np.random.Generator) -> str:
  person = scene['people'][0]
  return f'a person {_action(person)} {places.phrase(person["box"])} of the picture.'


# Real


def _describe(rng: np.random.Generator, color: str, name: str, thing: Annotation) -> str:
  base = _choose(
    rng,
    (
      f'{color} {name}',
      f'{color} {name}',
      f'{thing["size"]} {color} {name}',
      f'{name} {color}',
      name,
    ),
  )
  where = rng.random()
  if where < 0.4:
    return f'{base} {_choose(rng, (places.coarse(thing["box"]), places.phrase(thing["box"])))}'
  if where < 0.75:
    return f'{base} {places.fine(thing["box"])}'
  return base


def _real_objects(scene: Annotation, rng: np.random.Generator) -> Description:
  things = [thing for thing in scene['objects'] if rng.random() < 0.9] or scene['objects'][:1]
  things = [things[k] for k in rng.permutation(len(things))]
  wrong = int(rng.integers(len(things))) if rng.random() < WRONG else -1
  parts = []
  for k, thing in enumerate(things):
    color, name = thing['color'], thing['name']
    if k == wrong:
      if rng.random() < 0.5:
        color = _choose(rng, list(COLORS))
      else:
        name = _choose(rng, NAMES)
    parts.append(_describe(rng, color, name, thing))
  if len(things) > 1 and rng.random() < 0.25:
    first, second = things[:2]
    parts = parts[2:] + [
      f'{first["color"]} {first["name"]} {places.relation(first["box"], second["box"])} '
      f'{second["color"]} {second["name"]}'
    ]
  named = _choose(rng, things)
  return _join_parts(rng, parts), f'{named["color"]} {named["name"]}', named['box']


def _real_words(scene: Annotation, rng: np.random.Generator) -> Description:
  words = [word for word in scene['words'] if rng.random() < 0.85] or scene['words'][:1]
  wrong = int(rng.integers(len(words))) if rng.random() < WRONG else -1
  parts = []
  for k, word in enumerate(words):
    text = _choose(rng, LEXICON) if k == wrong else word['text']
    base = _choose(
      rng,
      (
        f'{text} sign',
        f'says {text}',
        f'{text} in {word["color"]}',
        f'{word["color"]} letters {text}',
        f'text {text}',
      ),
    )
    where = rng.random()
    if where < 0.6:
      base += ' ' + (places.coarse(word['box']) if where < 0.3 else places.fine(word['box']))
    parts.append(base)
  named = _choose(rng, words)
  return _join_parts(rng, parts), named['text'], named['box']


def _real_page(scene: Annotation, rng: np.random.Generator) -> Description:
  blocks = [block for block in scene['blocks'] if rng.random() < 0.75] or scene['blocks'][:1]
  wrong = int(rng.integers(len(blocks))) if rng.random() < WRONG else -1
  parts = []
  for k, block in enumerate(blocks):
    label = label_words(_choose(rng, LABELS) if k == wrong else block['label'])
    where = rng.random()
    if where < 0.35:
      label += ' ' + places.row(block['box'])
    elif where < 0.65:
      label += ' ' + places.height(block['box'])
    parts.append(label)
  named = _choose(rng, blocks)
  start = _choose(rng, ('scan', 'page', 'document', 'pdf page', 'a page with'))
  return f'{start} {_join_parts(rng, parts)}', label_words(named['label']), named['box']


def _height(y: float, box: Box) -> str:
  share = (y - box[1]) / (box[3] - box[1])
  if share < 0.3:
    return 'up'
  return 'level' if share < 0.45 else 'down'


def _limb(person: Annotation, rng: np.random.Generator) -> str:
  """A remark on one limb: "left hand up", "right foot far right at the very bottom"."""
  points = dict(zip(coordinates.KEYPOINTS, person['keypoints']))
  side = _choose(rng, ('left', 'right'))
  part, name = _choose(
    rng,
    (('hand', 'wrist'), ('hand', 'wrist'), ('foot', 'ankle'), ('knee', 'knee'), ('elbow', 'elbow')),
  )
  x, y, _ = points[f'{side} {name}']
  if part == 'hand' and rng.random() < 0.5:
    return f'{side} hand {_height(y, person["box"])}'
  return f'{side} {part} {places.fine((x, y, x, y))}'


def _real_figure(scene: Annotation, rng: np.random.Generator) -> Description:
  person = scene['people'][0]
  shown = person
  if rng.random() < WRONG:
    shown = dict(person, action=_choose(rng, ACTIONS), side=person['side'] or 'left')
  who = _choose(rng, ('person', 'stick man', 'figure', 'someone', 'stick figure'))
  action = person['action'] if rng.random() < 0.3 else _action(shown)
  parts = [f'{who} {action}']
  if rng.random() < 0.5:
    parts.append(_choose(rng, (places.coarse(person['box']), places.fine(person['box']))))
  parts += [_limb(person, rng) for _ in range(int(rng.integers(0, 3)))]
  points = dict(zip(coordinates.KEYPOINTS, person['keypoints']))
  if rng.random() < 0.25:
    return _join_parts(rng, parts), who, person['box']
  name = _choose(rng, coordinates.KEYPOINTS)
  x, y, _ = points[name]
  return _join_parts(rng, parts), name, (x, y, x, y)


def _join_parts(rng: np.random.Generator, parts: Sequence[str]) -> str:
  return _choose(rng, (', ', ', ', ' and ', ' ')).join(parts)


def _wrap(text: str, subject: str, rng: np.random.Generator) -> str:
  """Adds the words that surround alt-texts on web pages."""
  number = str(int(rng.integers(2, 99)))
  file = subject.replace(' ', _choose(rng, ('_', '-', '')))
  text = _choose(rng, _BEFORE).replace('{n}', number).replace('{file}', file).replace('{}', text)
  return _choose(rng, _AFTER).replace('{n}', number).replace('{}', text)


def _numbers(subject: str, box: Box, rng: np.random.Generator) -> str:
  """The place of `subject` as in image metadata: a focal point or, if it has an extent, a crop."""
  if box[2] > box[0] and rng.random() < 0.8:
    return f' crop {subject} {coordinates.format_box(box)}'
  return f' focus {subject} {coordinates.format_point(places.center(box))}'


_SYNTHETIC = {
  'objects': _synthetic_objects,
  'words': _synthetic_words,
  'page': _synthetic_page,
  'figure': _synthetic_figure,
}
_REAL = {'objects': _real_objects, 'words': _real_words, 'page': _real_page, 'figure': _real_figure}


def synthetic(scene: Annotation, rng: np.random.Generator) -> str:
  """Returns a clean caption of an annotation: all things with color, kind, size and place."""
  return _SYNTHETIC[scene['kind']](scene, rng)


def real(scene: Annotation, rng: np.random.Generator) -> str:
  """Returns a noisy caption of an annotation. A share of WRONG of them has a wrong fact."""
  text, subject, box = _REAL[scene['kind']](scene, rng)
  caption = _wrap(text, subject, rng)
  if rng.random() < NUMBERS and len(caption.split()) <= _MAX_WORDS:
    caption += _numbers(subject, box, rng)
  return caption
