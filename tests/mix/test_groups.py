"""Groups of parameters, derived from a model or given by patterns."""

import pytest

from sphinx_jax.core import errors
from sphinx_jax.mix import groups

LEAVES = {
  'start': 2,
  'encoders/clip/cls': 3,
  'encoders/clip/trunk/layers/w': 4,
  'encoders/dinov2/trunk/layers/w': 4,
  'proj/kernel': 5,
  'llm/embed': 6,
  'llm/layers/w': 50,
  'llm/layers/norm/scale': 10,
  'llm/norm/scale': 1,
}
STACKS = {
  'encoders/clip/trunk/layers/w': 2,
  'encoders/dinov2/trunk/layers/w': 2,
  'llm/layers/w': 5,
  'llm/layers/norm/scale': 5,
}


def test_the_groups_of_a_model_are_its_parts_and_blocks_of_layers():
  assert groups.sizes(groups.of_model(LEAVES, STACKS, 2), LEAVES, STACKS) == {
    'encoders/clip/.*': 7,
    'encoders/dinov2/.*': 4,
    'proj/.*': 5,
    'llm/embed': 6,
    'llm/layers/.*@0-1': 24,
    'llm/layers/.*@2-4': 36,
    'llm/norm/.*': 1,
    '[^/]*': 2,
  }
  layers = [group for group in groups.of_model(LEAVES, STACKS, 9) if '@' in group]
  assert layers == [f'llm/layers/.*@{n}' for n in range(5)]


def test_a_section_with_one_stack_is_one_group():
  leaves = {path: size for path, size in LEAVES.items() if 'dinov2' not in path}
  stacks = {path: depth for path, depth in STACKS.items() if 'dinov2' not in path}
  assert groups.of_model(leaves, stacks, 1)[0] == 'encoders/.*'


def test_patterns_are_completed_by_what_is_left():
  assert groups.complete([], LEAVES, STACKS) == ['.*']
  assert groups.complete(['llm/layers/.*@0', 'llm/.*'], LEAVES, STACKS) == [
    'llm/layers/.*@0', 'llm/.*', '.*',
  ]  # fmt: skip
  assert groups.complete(['llm/.*', '(?!llm).*'], LEAVES, STACKS) == ['llm/.*', '(?!llm).*']


@pytest.mark.parametrize(
  'patterns, message',
  [
    (['vision/.*'], "'vision/.*': got no parameters in which the inputs differ"),
    (['llm/.*', 'llm/embed'], "'llm/embed': got no parameters that are in no earlier group"),
    (['llm/layers/.*@5'], 'got layer 5 of 5'),
  ],
)
def test_a_group_without_parameters_is_refused(patterns, message):
  with pytest.raises(errors.SphinxError, match=message):
    groups.complete(patterns, LEAVES, STACKS)
