import numpy as np
import pytest

from sphinx_jax.core import errors, trees

TREE = {'llm': {'layers': {'w': np.zeros((2, 3), np.float32)}}, 'start': np.zeros(4, np.float32)}


def test_flatten_and_back():
  flat = trees.flatten(TREE)
  assert list(flat) == ['llm/layers/w', 'start']
  assert trees.unflatten(flat) == TREE
  assert trees.count(TREE) == 10 and trees.nbytes(TREE) == 40


def test_the_first_matching_rule_wins_and_every_path_must_match():
  rules = [('llm/.*', 1), ('.*/w', 2)]
  assert trees.first_match(rules, 'llm/layers/w') == 1
  assert trees.first_match(rules, 'vision/w') == 2
  with pytest.raises(errors.SphinxError, match="parameter 'start'"):
    trees.first_match(rules, 'start')


def test_every_difference_is_named():
  other = {
    'llm': {'layers': {'w': np.zeros((3, 2), np.float32)}},
    'start': np.zeros(4, np.float64),
    'end': np.zeros(1),
  }
  lines = trees.differences(TREE, other)
  assert lines == [
    'extra end',
    'llm/layers/w: shape (3, 2), expected (2, 3)',
    'start: dtype float64, expected float32',
  ]
  assert trees.differences(other, TREE)[0] == 'missing end'
  assert trees.differences(TREE, TREE) == []
