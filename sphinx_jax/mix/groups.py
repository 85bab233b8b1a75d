"""Groups of parameters that get coefficients of their own: patterns as in the rules of a mix."""

import itertools
import re
from collections.abc import Mapping, Sequence

from sphinx_jax.core import errors
from sphinx_jax.mix import layers, weights

_LLM = 'llm'  # The section of the language model, in every family.


def of_model(leaves: Mapping[str, int], stacks: Mapping[str, int], blocks: int) -> list[str]:
  """Returns the groups of a model.

  These are blocks of layers of the language model and each of its other parts; every other section
  of the model, or each of its parts if several of them have layers; and what belongs to no section.

  Args:
    leaves: path -> number of parameters, of the leaves to group.
    stacks: path -> number of layers, of stacks of layers.
    blocks: number of blocks of the language model; fewer if it has fewer layers.
  """
  groups: list[str] = []
  for section in dict.fromkeys(path.split('/')[0] for path in leaves if '/' in path):
    within = [path.split('/') for path in leaves if path.startswith(f'{section}/')]
    depth = {path[1]: stacks['/'.join(path)] for path in within if '/'.join(path) in stacks}
    if section != _LLM and len(depth) < 2:
      groups.append(f'{section}/.*')
      continue
    for part in dict.fromkeys(path[1] for path in within):
      pattern = f'{section}/{part}' if [section, part] in within else f'{section}/{part}/.*'
      is_cut = section == _LLM and part in depth
      groups += (
        [f'{pattern}{span}' for span in _spans(depth[part], blocks)] if is_cut else [pattern]
      )
  if any('/' not in path for path in leaves):
    groups.append('[^/]*')
  return groups


def _spans(depth: int, blocks: int) -> list[str]:
  """Returns the suffixes of blocks of about as many layers."""
  blocks = min(blocks, depth)
  ends = [depth * i // blocks for i in range(blocks + 1)]
  return [
    f'@{first}-{end - 1}' if end - first > 1 else f'@{first}'
    for first, end in itertools.pairwise(ends)
  ]


def sizes(
  groups: Sequence[str], leaves: Mapping[str, int], stacks: Mapping[str, int]
) -> dict[str, int]:
  """Returns the number of parameters in each group; the first pattern that matches decides.

  Args:
    groups: patterns.
    leaves, stacks: as of `of_model`.

  Raises:
    SphinxError: a pattern matches no leaf, or earlier ones decide all that it matches.
  """
  for pattern in groups:
    of_paths, _ = layers.split(pattern)
    if not any(re.fullmatch(of_paths, path) for path in leaves):
      raise errors.make(
        f"group '{pattern}'",
        'no parameters in which the inputs differ',
        f'a pattern of whole paths such as {", ".join([*leaves][:3])}',
        'correct it, or leave it out',
      )
  numbered = [(pattern, (number,)) for number, pattern in enumerate(groups)]
  counts = dict.fromkeys(groups, 0)
  for name, (number,) in weights.match([*numbered, ('.*', (-1,))], leaves, stacks=stacks).items():
    path = name.partition('@')[0]
    if number >= 0:
      counts[groups[number]] += leaves[path] // stacks.get(path, 1)
  empty = [pattern for pattern, count in counts.items() if not count]
  if empty:
    raise errors.make(
      f"group '{empty[0]}'",
      'no parameters that are in no earlier group',
      'some',
      'leave it out, or put it first',
    )
  return counts


def complete(
  patterns: Sequence[str], leaves: Mapping[str, int], stacks: Mapping[str, int]
) -> list[str]:
  """Returns groups that cover all leaves: some patterns, and '.*' if it has parameters left.

  Args:
    patterns: groups of the user's choice, in the order in which they decide.
    leaves, stacks: as of `of_model`.

  Raises:
    SphinxError: as of `sizes`.
  """
  grouped = sum(sizes(patterns, leaves, stacks).values())
  return [*patterns] if grouped == sum(leaves.values()) else [*patterns, '.*']
