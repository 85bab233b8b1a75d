"""The two caption domains over the same scenes.

"synthetic" is clean and templated and names everything with its place. "real" is alt-text as found on web pages:
partial, wandering, lower case, with file names and shop talk, and now and then a wrong fact. The encoders learn from
captions alone, so real ones stay informative: rough and fine places, written words, limbs, and (as content management
systems store with a picture) focal points and crops in numbers.
"""

from __future__ import annotations

from sphinx_jax.core import coordinates
from sphinx_jax.miniworld import places
from sphinx_jax.miniworld.draw import COLORS
from sphinx_jax.miniworld.figures import ACTIONS
from sphinx_jax.miniworld.objects import NAMES
from sphinx_jax.miniworld.pages import LABELS
from sphinx_jax.miniworld.words import LEXICON

WRONG = 0.1  # share of real captions with a wrong fact
NUMBERS = 0.85  # share of real captions that end in a focal point or crop
_ROOM = 32  # words a caption may have to get numbers as well
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


def _one(rng, choices):
  return choices[int(rng.integers(len(choices)))]


def _article(phrase):
  return ('an ' if phrase[0] in 'aeiou' else 'a ') + phrase


def _listing(parts):
  return parts[0] if len(parts) == 1 else ', '.join(parts[:-1]) + ' and ' + parts[-1]


def label_words(label):
  """A DocLayNet label as words: "Section-header" -> "section header"."""
  return label.lower().replace('-', ' ')


# Synthetic


def _synthetic_objects(scene, rng):
  parts = [
    f'{_article(thing["size"] + " " + thing["color"] + " " + thing["name"])} {places.phrase(thing["box"])}'
    for thing in sorted(scene['objects'], key=lambda thing: places.center(thing['box'])[::-1])
  ]
  return _listing(parts) + '.'


def _synthetic_words(scene, rng):
  return (
    _listing(
      [
        f'the word {word["text"]} in {word["color"]} {places.phrase(word["box"])}'
        for word in scene['words']
      ]
    )
    + '.'
  )


def _synthetic_page(scene, rng):
  return (
    'a page with '
    + _listing(
      [f'{label_words(block["label"])} {places.row(block["box"])}' for block in scene['blocks']]
    )
    + '.'
  )


def _action(person):
  """The action as a sentence has it: "waving with the left hand", "with arms up"."""
  side = person['side']
  return {
    'waving': f'waving with the {side} hand',
    'kicking': f'kicking with the {side} leg',
    'arms up': 'with both arms up',
    'arms out': 'with both arms out',
    'hands on hips': 'with hands on hips',
  }.get(person['action'], person['action'])


def _synthetic_figure(scene, rng):
  person = scene['people'][0]
  return f'a person {_action(person)} {places.phrase(person["box"])} of the picture.'


# Real


def _described(rng, color, name, thing):
  base = _one(
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
    return f'{base} {_one(rng, (places.coarse(thing["box"]), places.phrase(thing["box"])))}'
  if where < 0.75:
    return f'{base} {places.fine(thing["box"])}'
  return base


def _real_objects(scene, rng):
  things = [thing for thing in scene['objects'] if rng.random() < 0.9] or scene['objects'][:1]
  things = [things[k] for k in rng.permutation(len(things))]
  wrong = int(rng.integers(len(things))) if rng.random() < WRONG else -1
  parts = []
  for k, thing in enumerate(things):
    color, name = thing['color'], thing['name']
    if k == wrong:
      color, name = (
        (_one(rng, list(COLORS)), name) if rng.random() < 0.5 else (color, _one(rng, NAMES))
      )
    parts.append(_described(rng, color, name, thing))
  if len(things) > 1 and rng.random() < 0.25:
    first, second = things[:2]
    parts = parts[2:] + [
      f'{first["color"]} {first["name"]} {places.relation(first["box"], second["box"])} '
      f'{second["color"]} {second["name"]}'
    ]
  named = _one(rng, things)
  return _joined(rng, parts), f'{named["color"]} {named["name"]}', named['box']


def _real_words(scene, rng):
  words = [word for word in scene['words'] if rng.random() < 0.85] or scene['words'][:1]
  wrong = int(rng.integers(len(words))) if rng.random() < WRONG else -1
  parts = []
  for k, word in enumerate(words):
    text = _one(rng, LEXICON) if k == wrong else word['text']
    base = _one(
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
  named = _one(rng, words)
  return _joined(rng, parts), named['text'], named['box']


def _real_page(scene, rng):
  blocks = [block for block in scene['blocks'] if rng.random() < 0.75] or scene['blocks'][:1]
  wrong = int(rng.integers(len(blocks))) if rng.random() < WRONG else -1
  parts = []
  for k, block in enumerate(blocks):
    label = label_words(_one(rng, LABELS) if k == wrong else block['label'])
    where = rng.random()
    if where < 0.35:
      label += ' ' + places.row(block['box'])
    elif where < 0.65:
      label += ' ' + places.height(block['box'])
    parts.append(label)
  named = _one(rng, blocks)
  start = _one(rng, ('scan', 'page', 'document', 'pdf page', 'a page with'))
  return f'{start} {_joined(rng, parts)}', label_words(named['label']), named['box']


def _height(y, box):
  share = (y - box[1]) / (box[3] - box[1])
  return 'up' if share < 0.3 else 'level' if share < 0.45 else 'down'


def _limbs(person, rng):
  """One remark on a limb: "left hand up", "right foot far right at the very bottom"."""
  points = dict(zip(coordinates.KEYPOINTS, person['keypoints']))
  side = _one(rng, ('left', 'right'))
  part, name = _one(
    rng,
    (('hand', 'wrist'), ('hand', 'wrist'), ('foot', 'ankle'), ('knee', 'knee'), ('elbow', 'elbow')),
  )
  x, y, _ = points[f'{side} {name}']
  if part == 'hand' and rng.random() < 0.5:
    return f'{side} hand {_height(y, person["box"])}'
  return f'{side} {part} {places.fine((x, y, x, y))}'


def _real_figure(scene, rng):
  person = scene['people'][0]
  shown = (
    dict(person, action=_one(rng, ACTIONS), side=person['side'] or 'left')
    if rng.random() < WRONG
    else person
  )
  who = _one(rng, ('person', 'stick man', 'figure', 'someone', 'stick figure'))
  action = person['action'] if rng.random() < 0.3 else _action(shown)
  parts = [f'{who} {action}']
  if rng.random() < 0.5:
    parts.append(_one(rng, (places.coarse(person['box']), places.fine(person['box']))))
  parts += [_limbs(person, rng) for _ in range(int(rng.integers(0, 3)))]
  points = dict(zip(coordinates.KEYPOINTS, person['keypoints']))
  if rng.random() < 0.25:
    return _joined(rng, parts), who, person['box']
  name = _one(rng, coordinates.KEYPOINTS)
  x, y, _ = points[name]
  return _joined(rng, parts), name, (x, y, x, y)


def _joined(rng, parts):
  return _one(rng, (', ', ', ', ' and ', ' ')).join(parts)


def _wrapped(text, subject, rng):
  number = str(int(rng.integers(2, 99)))
  file = subject.replace(' ', _one(rng, ('_', '-', '')))
  text = _one(rng, _BEFORE).replace('{n}', number).replace('{file}', file).replace('{}', text)
  return _one(rng, _AFTER).replace('{n}', number).replace('{}', text)


def _numbers(subject, box, rng):
  """Where `subject` is, as picture metadata has it: its focal point, or its crop when it has an extent."""
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


def synthetic(scene, rng) -> str:
  """The clean caption of an annotation: all that is there, with colour, kind, size and place."""
  return _SYNTHETIC[scene['kind']](scene, rng)


def real(scene, rng) -> str:
  """A noisy caption of an annotation; about one in ten (WRONG) has a wrong fact."""
  text, subject, box = _REAL[scene['kind']](scene, rng)
  caption = _wrapped(text, subject, rng)
  if rng.random() < NUMBERS and len(caption.split()) <= _ROOM:
    caption += _numbers(subject, box, rng)
  return caption
