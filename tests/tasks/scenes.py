"""Hand-made annotations: one that every task can use, and an empty one."""

from sphinx_jax.tasks import TASKS


def thing(name, color, box):
  return {'name': name, 'color': color, 'size': 'small', 'box': box}


OBJECTS = [
  thing('circle', 'red', [0.05, 0.10, 0.25, 0.30]),
  thing('cup', 'blue', [0.60, 0.12, 0.90, 0.40]),
  thing('cup', 'orange', [0.62, 0.60, 0.88, 0.95]),
]
WORDS = [
  {'text': 'sun', 'color': 'blue', 'box': [0.1, 0.1, 0.4, 0.2]},
  {'text': 'key', 'color': 'blue', 'box': [0.5, 0.7, 0.9, 0.8]},
]
BLOCKS = [
  {'label': 'Text', 'box': [0.1, 0.3, 0.9, 0.5]},
  {'label': 'Title', 'box': [0.2, 0.05, 0.8, 0.15]},
  {'label': 'Text', 'box': [0.1, 0.6, 0.9, 0.9]},
]
PERSON = {
  'box': [0.2, 0.1, 0.6, 0.9],
  'keypoints': [[0.2 + 0.02 * i, 0.1 + 0.045 * i, 2] for i in range(16)] + [[0, 0, 0]],
  'action': 'waving',
}
SCENE = {
  'objects': OBJECTS,
  'second': [thing('tree', 'red', OBJECTS[0]['box']), *OBJECTS[1:]],
  'words': WORDS,
  'blocks': BLOCKS,
  'people': [PERSON],
  'caption': 'a red circle, a blue cup and an orange cup',
  'text': 'the small dog runs over the green hill',
  'turns': [['What is this?', 'A red circle.'], [None, 'And two cups.']],
}
EMPTY = {
  'objects': [],
  'second': [],
  'words': [],
  'blocks': [],
  'people': [],
  'caption': ' ',
  'text': '',
  'turns': [],
}
NAMES = tuple(TASKS)
OPEN = ('text', 'dialog')  # Nothing to score.
SCORED = tuple(name for name in NAMES if name not in OPEN)
