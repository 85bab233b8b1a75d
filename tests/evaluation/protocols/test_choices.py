"""MMBench's circular accuracy and SEED-Bench's accuracy by type."""

import pytest

from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS, mmbench


def rotations(group, answers, category='finding', coarse='perception'):
  """Three rotations of one question whose true answer is the cat, with an answer to each."""
  lines = []
  for rotation, (answer, letter) in enumerate(zip(answers, 'ACB', strict=True)):
    texts = ['cat', 'dog', 'cow']
    choices = dict(zip('ABC', texts[rotation:] + texts[:rotation]))
    lines.append(
      {
        'group': group,
        'rotation': rotation,
        'choices': choices,
        'gt_answers': letter,
        'category': category,
        'l2-category': coarse,
        'answer': answer,
      }
    )
  return lines


@pytest.mark.parametrize(
  'answer, letter',
  [
    ('B', 'B'),
    ('(b) dog', 'B'),
    ('The answer is C.', 'C'),
    ('It is a cat', 'A'),
    ('CAT', 'A'),
    ('cat or dog', None),
    ('', None),
    ('D', None),
  ],
)
def test_the_choice_is_read_from_letter_or_text(answer, letter):
  assert mmbench.chosen(answer, {'A': 'cat', 'B': 'dog', 'C': 'cow'}) == letter


def test_a_question_is_right_if_all_its_rotations_are():
  lines = (
    rotations(1, ['A', 'C', 'B'])
    + rotations(2, ['A', 'A', 'A'])
    + rotations(3, ['cat', 'cat', 'cat'], 'counting', 'reasoning')
    + rotations(4, ['B', 'C', 'B'], 'counting', '')
  )
  assert PROTOCOLS['mmbench'](lines) == {
    'accuracy': 0.5,
    'accuracy without rotation': 0.75,
    'perception': 0.5,
    'reasoning': 1,
    'counting': 0.5,
    'finding': 0.5,
  }
  assert PER_EXAMPLE['mmbench'](lines)[:6] == [1, 1, 1, 1, 0, 0]
  assert PROTOCOLS['mmbench'](lines[::-1]) == PROTOCOLS['mmbench'](lines)


def test_mmbench_perfect_and_wrong():
  assert PROTOCOLS['mmbench'](rotations(1, ['A', 'C', 'B']))['accuracy'] == 1
  assert PROTOCOLS['mmbench'](rotations(1, ['B', 'A', 'C']))['accuracy without rotation'] == 0


def test_seed_by_type():
  lines = [
    {'gt_answers': truth, 'answer': answer, 'question_type_id': kind}
    for truth, answer, kind in [('A', 'A', 1), ('B', 'B. red', 1), ('C', 'D', 5), ('D', 'red', '5')]
  ]
  assert PROTOCOLS['seed_bench'](lines) == {
    'accuracy': 0.5,
    'scene understanding': 1,
    'instance counting': 0,
  }
  assert PER_EXAMPLE['seed_bench'](lines) == [1, 1, 0, 0]
