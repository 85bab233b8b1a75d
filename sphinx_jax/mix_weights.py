"""Mixes the weights of checkpoints into a new one, as the paper mixes real and synthetic captions:

    python -m sphinx_jax.mix_weights --inputs=REAL,SYNTHETIC --coefficients=0.5,0.5 --output=DIR

`--rule='llm/layers/.*=0.7,0.3'` gives other coefficients to the parameters whose path matches; the
first matching rule decides. The path of a single expert ends with its number:
`--rule='llm/layers/feed_forward/w[123]/kernel/3=1,0'`. A pattern that ends in `@LAYER` or
`@FIRST-LAST` is for these layers: `--rule='llm/layers/.*@0-15=1,0'`. `--base=DIR` switches to task
arithmetic: base + sum of c_i * (input_i - base). Checkpoints of any size are mixed in at most 2 GiB
of memory. Directories may be gs:// URLs.

`--method` names another method (mix/methods.py). slerp rotates the first input to the second. TIES,
DARE, model breadcrumbs and model stock need the base:

    python -m sphinx_jax.mix_weights --method=model_stock --inputs=A,B,C --base=BASE --output=DIR

Fisher merging and RegMean look at data: they need statistics of every input, which
`python -m sphinx_jax.mix_stats` measures (fisher: --statistics=fisher, regmean: gram):

    python -m sphinx_jax.mix_weights --method=regmean --inputs=A,B --coefficients=0.5,0.5 \\
        --statistics=A_STATS,B_STATS --output=DIR

Folders of HF transformers, or names in the local hub cache, are mixed into such a folder without a
conversion. BASE+ADAPTER is a folder with a LoRA adapter (PEFT) merged into it; one input alone is
allowed:

    python -m sphinx_jax.mix_weights --inputs=BASE+ADAPTER --output=DIR

Adapters of several runs on one base are mixed into one adapter of a rank that is asked for, and the
error is printed:

    python -m sphinx_jax.mix_weights --inputs=A,B --coefficients=0.5,0.5 --rank=16 --output=DIR

Two methods choose the coefficients by held-out data of the run, see mix_choice.py. A greedy soup
(arXiv 2203.05482) averages those inputs that lower the loss. A search (CMA-ES) finds coefficients
for all parameters, and others for those whose path matches a --rule, here without numbers:

    python -m sphinx_jax.mix_weights --method=greedy_soup --inputs=A,B,C --output=DIR
    python -m sphinx_jax.mix_weights --method=search --inputs=A,B --rule='llm/layers/.*@0-15' \
      --rule='llm/.*' --evaluations=50 --tasks=vqa,rec --output=DIR

They need the memory of a training run's weights for every input, and use its devices. The same
command goes on where it was killed.

`python -m sphinx_jax.mix_curve` measures mixes without writing any.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
from absl import flags

from sphinx_jax.checkpoint import adapter_mixing, adapter_runs, merged, mixing, store
from sphinx_jax.checkpoint.foreign import hub, mixing as foreign_mixing
from sphinx_jax.core import cli, errors, files, text as text_lib
from sphinx_jax.mix import methods, weights
from sphinx_jax.parallel import hosts

FLAGS = flags.FLAGS
# Methods that choose coefficients by held-out data, and the flags that only they take.
CHOOSING = ('greedy_soup', 'search')
CHOOSING_FLAGS = ('config', 'tasks', 'examples', 'split', 'evaluations')
DTYPES = ('float32', 'bfloat16', 'float16')


def _parse_numbers(texts: Sequence[str], flag: str) -> tuple[float, ...]:
  """Returns the numbers of a comma-separated flag; `flag` is its name for the error message."""
  try:
    return tuple(float(text) for text in texts)
  except ValueError:
    raise errors.make(
      flag, ','.join(texts), 'numbers separated by commas', 'for instance 0.5,0.5'
    ) from None


def _parse_rules(
  texts: Sequence[str], default: tuple[float, ...]
) -> list[tuple[str, tuple[float, ...]]]:
  """Returns the rules of `--rule` in order, and the default coefficients as the last rule."""
  rules = []
  for text in texts:
    pattern, equals, numbers = text.rpartition('=')
    if not equals:
      raise errors.make(
        '--rule', text, "'pattern=numbers'", "for instance --rule='llm/layers/.*=0.7,0.3'"
      )
    rules.append((pattern, _parse_numbers(numbers.split(','), '--rule')))
  return [*rules, ('.*', default)]


def _choose_mix(places: Sequence[str]) -> Callable[..., Any]:
  """Returns the function that mixes such inputs: checkpoints, or folders of HF transformers.

  Raises:
    SphinxError: there are both, or one is an adapter without its base.
  """
  alone = next(filter(adapter_runs.is_adapter, places), None)
  if alone is not None:
    raise errors.make(
      f"mix_weights, input '{alone}'",
      'a run that holds adapters alone',
      'all weights',
      'give BASE+ADAPTER, or --rank=N, which mixes adapters into one',
    )
  checkpoints = [place for place in places if store.is_checkpoint(merged.split(place)[0])]
  folders = [
    place
    for place in places
    if place not in checkpoints and hub.locate(hub.split(place)[0]).exists()
  ]
  if checkpoints and folders:
    raise errors.make(
      'mix_weights',
      f"a checkpoint of sphinx_jax ('{checkpoints[0]}') and a folder of another library "
      f"('{folders[0]}')",
      'inputs of one kind',
      'import the folder (python -m sphinx_jax.convert), or export the checkpoint (--to=hf)',
    )
  return foreign_mixing.mix_folders if folders else mixing.mix_checkpoints


def _refuse(names: Iterable[str], what: str) -> None:
  """Raises SphinxError if one of some flags is given, with what it has no effect."""
  for name in names:
    if FLAGS[name].value != FLAGS[name].default:
      raise errors.make(
        f'--{name}', f'{FLAGS[name].value} with {what}', 'none: it has no effect', 'leave it out'
      )


def _mix_adapters(rules: weights.Coefficients) -> None:
  """Mixes adapters into one, and prints what is lost.

  Raises:
    SphinxError: a flag has no effect on such a mix, or as `adapter_mixing.mix_adapters`.
  """
  _refuse(('method', 'dtype', 'statistics', *methods.OPTIONS), '--rank')
  losses = adapter_mixing.mix_adapters(
    FLAGS.inputs, rules, FLAGS.output, FLAGS.rank, FLAGS.unnormalized, FLAGS.base
  )
  rows = [('layer', 'rank', 'relative error')]
  rows += [(layer, loss.rank or '', f'{loss.error:.2%}') for layer, loss in losses.items()]
  print(text_lib.table(rows, 'lrr'))


def _mix_chosen() -> None:
  """Chooses coefficients by held-out data, prints what they are worth, and mixes.

  Raises:
    SphinxError: a flag has no effect on such a mix, or as `mix_choice.mix_chosen`.
  """
  options = {name: FLAGS[name].value for name in ('tasks', 'examples', 'split', 'config', 'dtype')}
  without = {*methods.OPTIONS, 'coefficients', 'base', 'unnormalized', 'statistics', 'rank'}
  if FLAGS.method == 'search':
    without.discard('seed')
    options |= {'evaluations': FLAGS.evaluations, 'seed': FLAGS.seed or 0, 'patterns': FLAGS.rule}
    named = next((rule for rule in FLAGS.rule if re.search(r'=[\d.,+-]*$', rule)), None)
    if named is not None:
      raise errors.make(
        '--rule', named, 'a pattern alone: the search finds the numbers', 'leave them out'
      )
  else:
    without |= {'rule', 'evaluations'}
  _refuse(sorted(without), f'--method={FLAGS.method}')
  if len(FLAGS.inputs) < 2:
    raise errors.make('--inputs', f'{len(FLAGS.inputs)} inputs', 'at least two', 'name more')
  # It takes seconds to import what runs a model, and other methods do without.
  from sphinx_jax import mix_choice

  facts = {name: FLAGS[name].value for name in ('inputs', 'method', 'evaluations', 'rule', 'seed')}
  with hosts.session(facts), files.writing(FLAGS.output, 'output'):
    mix_choice.mix_chosen(FLAGS.method, FLAGS.inputs, FLAGS.output, **options)


def main() -> None:
  count = len(FLAGS.inputs or ())
  is_chosen = FLAGS.method in CHOOSING
  has_default = count == 1 or is_chosen or methods.find(FLAGS.method).coefficients == 'equal'
  for name in ('inputs', *(() if has_default else ('coefficients',)), 'output'):
    if not FLAGS[name].value:
      raise errors.make(
        f'--{name}',
        'nothing',
        'a value',
        'for instance --inputs=A,B --coefficients=0.5,0.5 --output=DIR',
      )
  if is_chosen:
    _mix_chosen()
    return
  _refuse(CHOOSING_FLAGS, f'--method={FLAGS.method}')
  jax.config.update('jax_platforms', 'cpu')  # Leaves the accelerator to other programs.
  coefficients = _parse_numbers(FLAGS.coefficients, '--coefficients') or (1 / count,) * count
  rules = _parse_rules(FLAGS.rule, coefficients) if FLAGS.rule else coefficients
  if FLAGS.rank is not None:
    _mix_adapters(rules)
    return
  mix = _choose_mix([*FLAGS.inputs, *([FLAGS.base] if FLAGS.base else [])])
  mix(
    FLAGS.inputs,
    rules,
    FLAGS.output,
    unnormalized=FLAGS.unnormalized,
    base=FLAGS.base,
    method=FLAGS.method,
    dtype=FLAGS.dtype,
    options={name: FLAGS[name].value for name in methods.OPTIONS},
    statistics=FLAGS.statistics,
  )


if __name__ == '__main__':
  cli.define_paths(
    'inputs',
    'Checkpoints, or folders of HF transformers, separated by commas. BASE+ADAPTER is one of them '
    'with a LoRA adapter: of a run of sphinx_jax, or of PEFT. With --rank: runs with adapters.',
  )
  flags.DEFINE_list(
    'coefficients', [], 'One number for each input, separated by commas. Of one input: 1.'
  )
  flags.DEFINE_multi_string(
    'rule',
    [],
    "Other coefficients for the parameters whose path matches, 'pattern=numbers'; of a search, the "
    'pattern alone. Can be repeated; the first matching rule decides.',
  )
  cli.define_path(
    'base',
    None,
    'What the inputs started from, for methods that mix the differences to it. With linear: base + '
    'sum of c * (input - base).',
  )
  flags.DEFINE_enum(
    'method', 'linear', [*methods.METHODS, *CHOOSING], 'How to mix; see docs/weights.md.'
  )
  for name, option in methods.OPTIONS.items():
    define = flags.DEFINE_integer if option.kind is int else flags.DEFINE_float
    having = {key: row.options[name] for key, row in methods.METHODS.items() if name in row.options}
    defaults = ', '.join(f'{key} {value:g}' for key, value in having.items())
    define(name, None, f'{option.help} Defaults: {defaults}.')
  cli.define_paths(
    'statistics', 'Statistics (mix_stats) of every input, in their order, for fisher and regmean.'
  )
  flags.DEFINE_integer(
    'rank',
    None,
    'Mix adapters of one base, without it, into one adapter of at most this rank.',
    lower_bound=1,
  )
  flags.DEFINE_enum('dtype', None, DTYPES, "Dtype of the result; by default the first input's.")
  cli.define_config(optional=True)
  flags.DEFINE_list(
    'tasks', [], 'Tasks by whose scores a mix is chosen. Default: validation losses.'
  )
  flags.DEFINE_integer(
    'examples', 100, 'Most questions per task in each half of the held-out data.', lower_bound=1
  )
  flags.DEFINE_string('split', 'validation', 'Split of the tasks.')
  flags.DEFINE_integer('evaluations', 50, 'Most mixes that a search measures.', lower_bound=1)
  cli.define_path(
    'output', None, 'Directory of the mix: a checkpoint, or a folder of HF transformers.'
  )
  flags.DEFINE_bool('unnormalized', False, 'Allow coefficients that do not sum to 1.')
  cli.run(main)
