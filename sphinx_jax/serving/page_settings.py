"""What the page shows: tasks with the paper's instructions, examples of miniworld, colors.

The page reads them as JSON, so that nothing of the tasks or of the report's drawings is repeated in
its scripts.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sphinx_jax.core import coordinates
from sphinx_jax.miniworld import scene
from sphinx_jax.report import drawing
from sphinx_jax.tasks import TASKS, ocr, task as task_lib, vqa

_EXAMPLE_SIZE = 256  # Pixels of an edge.


class Blank(NamedTuple):
  """A part of an instruction that the user fills in.

  Attributes:
    label: its name.
    text: what it has at first.
    region: what it becomes when a box is dragged on the image, with '{}' for the box. '': boxes do
      not concern it.
  """

  label: str
  text: str = ''
  region: str = ''


class _Shown(NamedTuple):
  """A task of the page: its key in TASKS, its title, and the blanks of its first instruction."""

  task: str
  title: str
  blanks: tuple[Blank, ...] = ()


_TASKS = (
  _Shown('caption', 'Caption'),
  _Shown('vqa', 'VQA', (Blank('question', 'What is in the image?'),)),
  _Shown('detection', 'Detect'),
  _Shown('rec', 'Ground', (Blank('object'),)),
  _Shown('grounded_caption', 'Grounded caption'),
  _Shown('reg', 'Region', (Blank('region', region='{}'),)),
  _Shown('relation', 'Relation', (Blank('object'), Blank('other object'))),
  _Shown('layout', 'Layout'),
  _Shown('pose', 'Pose', (Blank('person', 'the person', 'the person in {}'),)),
  _Shown('ocr', 'OCR', (Blank('question', 'What does the text say?'),)),
)


class Example(NamedTuple):
  """An image of miniworld with a task.

  Attributes:
    task: its key in TASKS.
    blanks: texts of the blanks of its instruction.
    png: the image.
  """

  task: str
  blanks: Sequence[str]
  png: bytes


def _expressions(annotation: Mapping[str, Any]) -> list[str]:
  """Phrases that mean one object each."""
  return [texts[0] for _, texts in task_lib.unambiguous_expressions(annotation['objects'])]


def _first_box(annotation: Mapping[str, Any]) -> list[str]:
  return [coordinates.format_box(annotation['objects'][0]['box'])]


def _vqa(annotation: Mapping[str, Any]) -> list[str]:
  return [question for question, _ in vqa.scene_questions(annotation['objects'], _rng())]


def _ocr(annotation: Mapping[str, Any]) -> list[str]:
  return [question for question, _ in ocr.scene_questions(annotation['words'], _rng())]


# Task, kind and number of the scene, and texts for its blanks, of which the first ones are taken.
_EXAMPLES: tuple[tuple[str, str, int, Callable[[Mapping[str, Any]], Sequence[str]]], ...] = (
  ('detection', 'objects', 33, _expressions),
  ('rec', 'objects', 2, _expressions),
  ('reg', 'objects', 1, _first_box),
  ('relation', 'objects', 11, _expressions),
  ('vqa', 'objects', 4, _vqa),
  ('ocr', 'words', 41, _ocr),
  ('layout', 'page', 22, lambda _: ()),
  ('pose', 'figure', 1, lambda _: ['the person']),
)


def _rng() -> np.random.Generator:
  return np.random.default_rng(0)


@functools.cache
def examples() -> tuple[Example, ...]:
  """The examples, from scenes that no model was trained on."""
  blanks = {shown.task: len(shown.blanks) for shown in _TASKS}
  result = []
  for task, kind, index, fill in _EXAMPLES:
    drawn = scene.make(kind, 'test', index, size=_EXAMPLE_SIZE)
    result.append(Example(task, fill(drawn.annotation)[: blanks[task]], drawn.png()))
  return tuple(result)


def tasks() -> list[dict[str, Any]]:
  """The tasks: their key, title, instruction with '{}' for each blank, and blanks."""
  return [
    dict(
      task=shown.task,
      title=shown.title,
      instruction=TASKS[shown.task].instructions[0],
      blanks=[blank._asdict() for blank in shown.blanks],
    )
    for shown in _TASKS
  ]


def colors() -> dict[str, Any]:
  """Names of keypoints and colors of drawings, as in the report."""
  return dict(
    keypoints=coordinates.KEYPOINTS,
    limbs=[(a, b, drawing.side_color(a, b)) for a, b in drawing.SKELETON],
    joints=[drawing.side_color(i, i) for i in range(len(coordinates.KEYPOINTS))],
    labels=drawing.LAYOUT_COLORS,
    palette=drawing.PALETTE,
  )
