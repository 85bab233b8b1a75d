"""One instruction for all tasks keeps what is asked about, and the answers."""

import numpy as np
import pytest

from sphinx_jax.tasks import TASKS, common
from tests.tasks.scenes import SCENE

# Task -> what stays of its instructions.
CONTENT = {
  'caption': {''},
  'detection': {''},
  'grounded_caption': {''},
  'layout': {''},
  'pose': {'the person'},
  'rec': {'red circle', 'blue cup', 'orange cup'},
}


@pytest.mark.parametrize('name', [*CONTENT, 'reg', 'vqa', 'ocr', 'relation'])
def test_the_common_instruction_replaces_that_of_the_task(name):
  task = TASKS[name]
  contents = set()
  for seed in range(40):
    (turn,) = task.turns(SCENE, np.random.default_rng(seed), 1)
    changed = common.with_common_instruction(turn, task.instructions)
    assert (changed.answer, changed.truth) == (turn.answer, turn.truth)
    if name == 'relation' and changed == turn:  # It asks for an object, in a question of its own.
      assert turn.answer in {'red circle', 'blue cup', 'orange cup'}
      continue
    assert changed.instruction.startswith(common.INSTRUCTION)
    contents.add(changed.instruction.removeprefix(common.INSTRUCTION).strip())
  assert contents <= CONTENT.get(name, contents)


def test_phrasings_of_one_question_become_one():
  task, forms = TASKS['rec'], set()
  for phrasing in task.instructions:
    turn = task.turns(SCENE, np.random.default_rng(0), 1)[0]
    turn = type(turn)(phrasing.format('red circle'), turn.answer, turn.truth)
    forms.add(common.with_common_instruction(turn, task.instructions).instruction)
  assert forms == {'Answer about the image. red circle'}
