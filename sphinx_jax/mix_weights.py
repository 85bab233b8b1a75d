"""Mixes the weights of checkpoints into a new one, as the paper mixes real and synthetic captions:

    python -m sphinx_jax.mix_weights --inputs=REAL,SYNTHETIC --coefficients=0.5,0.5 --output=DIR

`--rule='encoders/.*:1,0'` gives other coefficients to the parameters whose path matches (the first match decides).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence

from absl import flags

from sphinx_jax.checkpoint import store as checkpoints
from sphinx_jax.core import cli, errors
from sphinx_jax.core.progress import log, progress
from sphinx_jax.mix import weights

FLAGS = flags.FLAGS
CARRIED = ('config', 'tokenizer', 'dialog')  # What inference needs, taken from the first parent.


def mix_checkpoints(inputs: Sequence[str | pathlib.Path], coefficients: weights.Coefficients, output: str | pathlib.Path,
                    unnormalized: bool = False) -> pathlib.Path:
  """Writes the mix of several checkpoints; an output that already holds this very mix is left as it is.

  Args:
    inputs: directories of runs (their newest checkpoint) or single checkpoints.
    coefficients: one per input, or ordered rules `(pattern, numbers)`; see mix/weights.py.
    output: directory of the mixed checkpoint, like a run's.
    unnormalized: allows coefficients that do not sum to 1.

  Returns:
    The output directory.

  Raises:
    SphinxError: inputs that are no checkpoints, differ in leaves or tokenizer; an output that holds something else.
  """
  metas = [checkpoints.load_meta(directory) for directory in inputs]
  for directory, meta in zip(inputs[1:], metas[1:]):
    if meta.get('tokenizer') != metas[0].get('tokenizer'):
      raise errors.make(f"mix_weights, input '{directory}'", 'another tokenizer', f"that of '{inputs[0]}'",
                        'mix checkpoints of one tokenizer')
  recipe = {'parents': [{'directory': str(directory), 'step': meta['step']} for directory, meta in zip(inputs, metas)],
            'coefficients': _plain(coefficients)}
  if _holds(output, recipe):
    log.info('%s: mixed before', output)
    return pathlib.Path(output)
  mixed = weights.mix([checkpoints.load_params(directory) for directory in inputs], coefficients, unnormalized)
  with checkpoints.Store(output) as store:
    store.save(0, mixed, None, {name: metas[0].get(name) for name in CARRIED} | recipe)
  log.info('%s: %s of %s', output, recipe['coefficients'], ', '.join(map(str, inputs)))
  return pathlib.Path(output)


def _holds(output: str | pathlib.Path, recipe: Mapping) -> bool:
  """Whether the output is this mix already."""
  if checkpoints.latest(output) is None:
    return False
  found = checkpoints.load_meta(output)
  if any(found.get(key) != value for key, value in recipe.items()):
    raise errors.make(f"mix_weights, output '{output}'", f'a checkpoint of {found.get("parents") or "a training run"}',
                      'a new directory', 'give another --output')
  return True


def _plain(coefficients: weights.Coefficients) -> list:
  """Coefficients as JSON gives them back."""
  return [item if isinstance(item, (int, float)) else [item[0], list(item[1])] for item in coefficients]


def curve(first: Mapping, second: Mapping, coefficients: Sequence[float],
          evaluate: Callable[[dict], Mapping[str, float]]) -> list[dict[str, float]]:
  """Measures mixes that are made in memory only.

  Args:
    first, second: parameter trees on their devices.
    coefficients: shares b of the first tree; the mix is b * first + (1 - b) * second.
    evaluate: parameters -> name -> value (validation losses, say).

  Returns:
    One dictionary per coefficient: `coefficient` and what `evaluate` gave.
  """
  points = []
  with progress(total=len(coefficients), what='weight mixes', unit='mix') as bar:
    for share in coefficients:
      values = evaluate(weights.mix((first, second), (share, 1 - share)))
      points.append({'coefficient': float(share), **values})
      bar.update(note=' '.join(f'{name} {value:.4f}' for name, value in values.items()))
  return points


def _numbers(items: Sequence[str], flag: str) -> tuple[float, ...]:
  try:
    return tuple(float(item) for item in items)
  except ValueError:
    raise errors.make(flag, ','.join(items), 'numbers separated by commas', 'for instance 0.5,0.5') from None


def _rules(texts: Sequence[str], default: tuple[float, ...]) -> list[tuple[str, tuple[float, ...]]]:
  rules = []
  for text in texts:
    pattern, colon, numbers = text.rpartition(':')
    if not colon:
      raise errors.make('--rule', text, "'pattern:numbers'", "for instance --rule='encoders/.*:1,0'")
    rules.append((pattern, _numbers(numbers.split(','), '--rule')))
  return [*rules, ('.*', default)]


def main() -> None:
  for name in ('inputs', 'coefficients', 'output'):
    if not FLAGS[name].value:
      raise errors.make(f'--{name}', 'nothing', 'a value', 'for instance --inputs=A,B --coefficients=0.5,0.5 --output=DIR')
  coefficients = _numbers(FLAGS.coefficients, '--coefficients')
  mix_checkpoints(FLAGS.inputs, _rules(FLAGS.rule, coefficients) if FLAGS.rule else coefficients, FLAGS.output,
                  FLAGS.unnormalized)


if __name__ == '__main__':
  flags.DEFINE_list('inputs', [], 'Directories of the checkpoints to mix.')
  flags.DEFINE_list('coefficients', [], 'One number for each input.')
  flags.DEFINE_multi_string('rule', [], "Coefficients for a part of the parameters, 'pattern:numbers'; can be repeated.")
  flags.DEFINE_string('output', None, 'Directory of the mixed checkpoint.')
  flags.DEFINE_bool('unnormalized', False, 'Allows coefficients that do not sum to 1.')
  cli.run(main)
