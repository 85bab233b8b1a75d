"""The text-only corpus: short true sentences about miniworld, from templates, without images."""

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from sphinx_jax.miniworld.draw import COLORS
from sphinx_jax.miniworld.figures import ACTIONS
from sphinx_jax.miniworld.objects import ICONS, NAMES, SHAPES
from sphinx_jax.miniworld.words import LEXICON

_COLORS = tuple(COLORS)
_NUMBERS = ('one', 'two', 'three', 'four', 'five', 'six', 'seven', 'eight', 'nine', 'ten')
_PEOPLE = ('anna', 'ben', 'clara', 'david', 'emma', 'finn', 'grace', 'hugo', 'iris', 'jonas')
_DOING = ('waving', 'standing', 'sitting', 'jumping', 'kicking')
_PARTS = ('a table', 'a picture', 'some text', 'a formula')
_OPPOSITE = {'left of': 'right of', 'right of': 'left of', 'above': 'below', 'below': 'above'}
_FACTS = (
  'a circle is round and has no corners.',
  'a square has four equal sides and four corners.',
  'a triangle has three sides and three corners.',
  'a star has five points.',
  'a cup holds tea and has a handle.',
  'a house has a roof, a door and a window.',
  'a tree has a trunk and green leaves in summer.',
  'a car has wheels and windows and drives on the road.',
  'a title stands at the top of the first page.',
  'a caption tells what a picture or a table shows.',
  'a footnote stands at the bottom of the page under a short rule.',
  'a page footer often holds the page number.',
  'a page header runs along the top of the page.',
  'a table has rows and columns.',
  'a formula is written with symbols and a number in brackets.',
  'a list item starts with a dot.',
  'a section header names the part that follows.',
  'whoever faces you has the left hand on your right.',
  'orange lies between red and yellow.',
  'purple is made of red and blue.',
  'green is made of yellow and blue.',
)


_T = TypeVar('_T')


def _choose(rng: np.random.Generator, choices: Sequence[_T]) -> _T:
  return choices[int(rng.integers(len(choices)))]


def _choose_two(rng: np.random.Generator, choices: Sequence[_T]) -> tuple[_T, _T]:
  first, second = rng.choice(len(choices), 2, replace=False)
  return choices[int(first)], choices[int(second)]


def _things(rng: np.random.Generator, count: int) -> list[str]:
  """Returns `count` different colored things, for example "red circle"."""
  picks = rng.choice(len(_COLORS) * len(NAMES), count, replace=False)
  return [f'{_COLORS[k // len(NAMES)]} {NAMES[k % len(NAMES)]}' for k in picks]


def _fact(rng: np.random.Generator) -> str:
  first, second = _choose_two(rng, _FACTS)
  return _choose(
    rng,
    (
      first,
      f'{first} {second}',
      f'{_choose(rng, _PEOPLE)} says: {first}',
      f'remember that {first}',
    ),
  )


def _color(rng: np.random.Generator) -> str:
  color, other = _choose_two(rng, _COLORS)
  name, person = _choose(rng, NAMES), _choose(rng, _PEOPLE)
  return _choose(
    rng,
    (
      f'the {name} is {color}. it is not {other}.',
      f'is the {name} {other}? no, it is {color}.',
      f'{person} paints the {name} {color}. now the {name} is {color}.',
      f'what colour is the {color} {name}? it is {color}.',
      f'{person} likes {color} more than {other}.',
    ),
  )


def _count(rng: np.random.Generator) -> str:
  name, other = _choose_two(rng, NAMES)
  first, second = int(rng.integers(1, 6)), int(rng.integers(1, 5))
  many, total = _NUMBERS[first - 1], _NUMBERS[first + second - 1]
  plural = '' if first == 1 else 's'
  more = 'more' if first > second else 'fewer' if first < second else 'as many'
  joint = 'as' if first == second else 'than'
  return _choose(
    rng,
    (
      f'{many} {name}{plural} and {_NUMBERS[second - 1]} more make {total}.',
      f'{_choose(rng, _PEOPLE)} has {many} {name}{plural} and gets {_NUMBERS[second - 1]} more. '
      f'that makes {total}.',
      f'how many {name}s are there? there {"is" if first == 1 else "are"} {first}.',
      f'here are {first} {name}s and {second} {other}s. there are {more} {name}s {joint} {other}s.',
    ),
  )


def _order(rng: np.random.Generator) -> str:
  first, second, third = _things(rng, 3)
  where = _choose(rng, tuple(_OPPOSITE))
  back = _OPPOSITE[where]
  return _choose(
    rng,
    (
      f'if the {first} is {where} the {second}, then the {second} is {back} the {first}.',
      f'the {first} is {where} the {second}. so the {second} is {back} the {first}.',
      f'the {first} is {where} the {second} and the {second} is {where} the {third}. '
      f'so the {first} is {where} the {third}.',
    ),
  )


def _number_line(rng: np.random.Generator) -> str:
  low, high = sorted(int(k) for k in rng.choice(99, 2, replace=False))
  text = f'0.{low:02d}', f'0.{high:02d}'
  return _choose(
    rng,
    (
      f'a point at {text[0]} lies left of a point at {text[1]}.',
      f'{text[0]} is less than {text[1]}.',
      f'a point at height {text[0]} lies above a point at height {text[1]}.',
      f'from {text[0]} to {text[1]} it is 0.{high - low:02d}.',
      f'0.{low:02d} is in the {"left" if low < 50 else "right"} half of the picture.',
    ),
  )


def _compare(rng: np.random.Generator) -> str:
  first, second = _things(rng, 2)
  same = 'the same colour' if first.split()[0] == second.split()[0] else 'of different colours'
  return _choose(
    rng,
    (
      f'the {first} is bigger than the {second}, so the {second} is smaller.',
      f'a big {first} covers more of the picture than a small {second}.',
      f'the small {first} fits beside the big {second}.',
      f'the {first} and the {second} are {same}.',
    ),
  )


def _spell(rng: np.random.Generator) -> str:
  word = _choose(rng, LEXICON)
  return _choose(
    rng,
    (
      f'the word {word} is spelled {" ".join(word)}.',
      f'{word} has {_NUMBERS[len(word) - 1]} letters.',
      f'{word} starts with {word[0]} and ends with {word[-1]}.',
      f'{_choose(rng, _PEOPLE)} writes the word {word} in {_choose(rng, _COLORS)} letters.',
    ),
  )


def _kinds(rng: np.random.Generator) -> str:
  shape, icon = _choose(rng, SHAPES), _choose(rng, ICONS)
  return _choose(
    rng,
    (
      f'a {shape} is a shape, but a {icon} is a thing.',
      f'is a {icon} a shape? no, a {icon} is a thing.',
      f'{_choose(rng, _PEOPLE)} draws a {_choose(rng, _COLORS)} {shape} '
      f'and a {_choose(rng, _COLORS)} {icon}.',
    ),
  )


def _story(rng: np.random.Generator) -> str:
  person, friend = _choose_two(rng, _PEOPLE)
  first, second = _things(rng, 2)
  side = _choose(rng, ('left', 'right'))
  place = _choose(
    rng,
    (
      'at the top',
      'at the bottom',
      'on the left',
      'on the right',
      'in the middle',
      'in the upper left',
      'in the lower right',
    ),
  )
  return _choose(
    rng,
    (
      f'{person} puts a {first} {place}. then {friend} brings a {second}. '
      f'now there are two things in the picture.',
      f'{person} is {_choose(rng, _DOING)}. {friend} looks for the {first} {place}.',
      f'{person} lifts the {side} hand and waves to {friend}, who sits beside the {second}.',
      f'{person} reads a page with a title and {_choose(rng, _PARTS)}. '
      f'{friend} looks at the {first}.',
      f'{person} hides the {first} behind the {second}. '
      f'{friend} cannot see the {first.split()[1]}.',
      f'first {person} tries {_choose(rng, ACTIONS)}, then {friend} tries {_choose(rng, ACTIONS)}.',
    ),
  )


_TEMPLATES = (_fact, _color, _count, _order, _number_line, _compare, _spell, _kinds, _story, _story)
# A text is in the split of its hash modulo _LANES: one lane is validation, one is test, the others
# are training.
_LANES = 20


def texts(split: str, count: int, seed: int = 0) -> list[str]:
  """Returns `count` different texts of a split.

  The hash of a text decides its split, so no text is in two splits. A larger `count` returns the
  same texts first.

  Args:
    split: 'train', 'validation' or 'test'.
    count: number of texts.
    seed: seed of the texts.
  """
  rng = np.random.default_rng((seed, 0x7E87))
  lanes = {'validation': range(1), 'test': range(1, 2), 'train': range(2, _LANES)}[split]
  chosen: dict[str, None] = {}
  while len(chosen) < count:
    text = _choose(rng, _TEMPLATES)(rng)
    if zlib.crc32(text.encode()) % _LANES in lanes:
      chosen[text] = None
  return list(chosen)
