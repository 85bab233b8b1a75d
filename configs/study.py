"""Studies of the four mixes: what each of them is worth, over several seeds.

    python -m sphinx_jax.study --config=study:weights --workdir=workdir/study/weights

Argument: the name of a study, then words with commas between them.

    weights     mixed weights against either parent, against one run on both domains for the same
                updates, and against the mix of parents that were trained apart
    tasks       joint tasks against each task alone at equal examples of it; instructions of each
                task against one common instruction
    embeddings  each encoder alone, pairs, all of them, with and without the Q-Former, at equal
                visual tokens
    scales      the global view, the sub-images, or both, at equal visual tokens; on the usual
                scenes, and on scenes whose objects and words are half as large
    sampling    weights of tasks that are learned from held-out losses against fixed ones, from the
                weights of the recipe and from equal ones
    unfreeze    a language model that is trained in stage 1 against a frozen one

Words: `quick` (one comparison, two seeds, few updates: whether it runs, without useful scores), or
a size and a scale of configs/recipe.py, which is then the base: `weights,7b,224`. A study of a
pod measures losses on the validation sets; `embeddings` and `sampling` need miniworld.

Each study has 3 seeds; `--config.seeds=5` adds two. The minutes of its steps with 3 seeds and one
core for each process:

    study       runs  minutes
    weights       18      129
    tasks          9       62
    embeddings    24      162
    scales        18      104
    sampling      12       62
    unfreeze       6       55

The same command, started a second time, takes half of the steps; `taskset -c 0` and `taskset -c 1`
before them give each a core. A setting of the base can be changed by
`--config.base.stage2.steps=900`; the runs `alone` of `tasks` and `apart_long` of `weights` have
lengths of their own, which do not follow.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.configs import mini, pod, recipe
from sphinx_jax.core import errors

# Updates of the base at laptop size.
REAL, SYNTHETIC, STAGE2 = 100, 60, 600
SHORT_STAGE2 = 300  # After every variant of stage 1 in `weights`.
LANGUAGE = 200  # Text alone, in `unfreeze`: the small language model is not pretrained.
EXAMPLES = 200  # Questions of a task.

Change = list[tuple[str, Any]]  # (dotted setting of the base, its value)
Changes = dict[str, Change]
Section = dict[str, Any]


def get_config(arg: str = 'embeddings') -> ConfigDict:
  """Returns the config of a study.

  Raises:
    SphinxError: an unknown word in `arg`.
  """
  name, *words = arg.split(',')
  if name not in STUDIES:
    raise errors.unknown('study', name, STUDIES)
  is_pod = any(word in pod.SIZES for word in words)
  if is_pod:
    base = recipe.get_config(','.join(words)).to_dict()
  else:
    for word in words:
      if word != 'quick':
        raise errors.unknown('argument of config study', word, ('quick', *pod.SIZES))
    base = _mini('quick' in words)
  study = dict(base=base, seeds=3, common=(), lease_seconds=300.0)
  study |= STUDIES[name](base, is_pod)
  if 'quick' in words:
    used = study['pairs'][0]
    study |= dict(
      pairs=(used,), seeds=2, changes={change: study['changes'][change] for change in used}
    )
  study['changes'] = {change: tuple(rows) for change, rows in study['changes'].items()}
  return ConfigDict(study).lock()


# ---------------------------------------------------------------------------------------------
# The base.


def _mini(quick: bool) -> Section:
  """The recipe at laptop size with fewer updates."""
  base = mini.get_config('quick' if quick else '').to_dict()
  if not quick:
    for stage, steps in (('real', REAL), ('synthetic', SYNTHETIC), ('stage2', STAGE2)):
      _set_steps(base[stage], steps)
    base['evaluate']['examples'] = EXAMPLES
  else:
    base['evaluate']['tasks'] = ('caption', 'vqa', 'rec')
  base['evaluate']['blind'] = False
  return base


def _set_steps(run: Section, steps: int) -> None:
  """Changes the length of a run, and what follows from it."""
  run['steps'] = steps
  run['optimizer']['warmup'] = max(steps // 20, 1)
  run['eval_every'] = 0
  run['checkpoint']['every'] = max(steps // 2, 1)


def _with_steps(run: Section, steps: int, **changes: Any) -> Section:
  """Returns a copy of a run with another length and other settings."""
  copied = ConfigDict(run).to_dict()
  _set_steps(copied, steps)
  return copied | changes


def _take(base: Section, names: Iterable[str]) -> None:
  """Leaves the steps before stage 1, and `names` after them."""
  first = base['steps'].index('real')
  base['steps'] = (*base['steps'][:first], *names)


def _measure(
  base: Section, is_pod: bool, checkpoint: str, like: str, tasks: Sequence[str]
) -> Section:
  """Returns the step that measures a checkpoint: by scores, on a pod by losses."""
  if not is_pod:
    return base['evaluate'] | dict(checkpoint=checkpoint, like=like, tasks=tuple(tasks))
  sets = {task: entry for task, entry in base[like]['validation'].items() if task in tasks}
  return _losses(checkpoint, like, sets, 64)


def _losses(checkpoint: str, like: str, sets: Section, batches: int) -> Section:
  return dict(kind='losses', checkpoint=checkpoint, like=like, sets=sets, batches=batches, seed=0)


def _tasks_of(base: Section, is_pod: bool) -> tuple[str, ...]:
  """The tasks that stage 2 is measured on."""
  return tuple(base['stage2']['validation']) if is_pod else base['evaluate']['tasks']


def _stage2_alone(base: Section, is_pod: bool) -> None:
  """Changes the base: stage 2 starts from the real captions, without the mix of weights."""
  base['stage2']['init_from'] = 'real'
  base['evaluate'] = _measure(base, is_pod, 'stage2', 'stage2', _tasks_of(base, is_pod))
  _take(base, ('real', 'stage2', 'evaluate'))
  for unused in ('synthetic', 'mix'):
    base.pop(unused, None)


def _of(stages: Iterable[str], setting: str, value: Any) -> Change:
  return [(f'{stage}.{setting}', value) for stage in stages]


# ---------------------------------------------------------------------------------------------
# The studies: each changes the base, and returns `title`, `changes` and `pairs`.


def _weights(base: Section, is_pod: bool) -> Section:
  """Stage 1 in five ways, each followed by a short stage 2.

  The base trains `real` and then `synthetic` from it, so the second parent has seen the updates of
  both. `joint` makes the same updates with both domains in every one of them. Parents trained
  `apart` both begin where `real` begins. In `apart` each has the updates of its own stage, in
  `apart_long` the second has those of both.
  """
  real, synthetic, stage2 = base['real'], base['synthetic'], base['stage2']
  quick = stage2['steps'] < 10
  both = {
    f'{name}_{domain}': entry
    for domain in ('real', 'synthetic')
    for name, entry in base[domain]['mixture'].items()
  }
  if not is_pod:
    _set_steps(stage2, stage2['steps'] if quick else SHORT_STAGE2)
    stage2['mixture']['caption_real'] = mini.caption('real', 'train', weight=0.0)
    sets = {domain: mini.caption(domain, 'test') for domain in ('real', 'synthetic')}
  else:
    sets = real['validation']
  base['mix']['coefficients'] = (0.0, 0.25, 0.5, 0.75, 1.0)

  measures = ['losses', 'stage2', 'evaluate']
  base['losses'] = _losses('mix', 'real', sets, 4 if quick else 16)
  base['evaluate'] = _measure(base, is_pod, 'stage2', 'stage2', _tasks_of(base, is_pod))
  if not is_pod:
    measures.insert(2, 'captions')
    base['captions'] = _measure(base, is_pod, 'mix', 'stage2', ('caption_real', 'caption'))
  before = base['steps'][: base['steps'].index('real')]
  _take(base, ('real', 'synthetic', 'mix', *measures))

  def instead_of_mix(start: str, *stage1: str) -> Change:
    """Stage 1 without a mix, and `start` in its place."""
    return [
      ('steps', (*before, *stage1, *measures)),
      ('stage2.init_from', start),
      *((f'{name}.checkpoint', start) for name in ('losses', 'captions') if name in base),
    ]

  apart = [(f'synthetic.{key}', real[key]) for key in ('init_from', 'trainable')]
  long = _with_steps(synthetic, real['steps'] + synthetic['steps'])
  changes = {
    'mix': [],
    'real': instead_of_mix('real', 'real'),
    'synthetic': instead_of_mix('synthetic', 'real', 'synthetic'),
    'joint': [
      *instead_of_mix('synthetic', 'real', 'synthetic'),
      *_of(('real', 'synthetic'), 'mixture', both),
    ],
    'apart': apart,
    'apart_long': [('synthetic', long), *apart],
  }
  others = ('joint', 'real', 'synthetic', 'apart', 'apart_long')
  return dict(
    title='Weights: is the mix of two domains better than its parents, or than joint training?',
    changes=changes,
    pairs=tuple((other, 'mix') for other in others),
  )


def _tasks(base: Section, is_pod: bool) -> Section:
  """Stage 2 on all tasks, on one at a time, and with one common instruction.

  Weights are equal shares of the positions, so a task alone sees as many of its examples in one
  part of the updates as it does among all tasks.
  """
  _stage2_alone(base, is_pod)
  stage2, tasks = base['stage2'], _tasks_of(base, is_pod)
  mixture = {task: stage2['mixture'][task] | dict(weight=1.0) for task in tasks}
  stage2['mixture'], stage2['sampling'] = mixture, stage2['sampling'] | dict(by='tokens')
  steps = max(stage2['steps'] // len(tasks), 1)
  names, alone = [], []
  for task in tasks:
    run, measure = f'stage2_{task}', f'evaluate_{task}'
    own = dict(mixture={task: mixture[task]}, name=run)
    alone += [
      (run, _with_steps(stage2, steps, **own)),
      (measure, base['evaluate'] | dict(checkpoint=run, like=run)),
    ]
    if is_pod:
      alone.append((f'{measure}.sets', {task: stage2['validation'][task]}))
    else:
      alone.append((f'{measure}.tasks', (task,)))
    names += [run, measure]
  first = base['steps'].index('stage2')
  changes = {'joint': [], 'alone': [*alone, ('steps', (*base['steps'][:first], *names))]}
  pairs = [('alone', 'joint')]
  if not is_pod:
    changes['common'] = [(f'stage2.mixture.{task}.instructions', 'common') for task in tasks]
    pairs = [('common', 'joint'), *pairs]
  return dict(
    title='Tasks: does joint tuning help each task, and do its own instructions?',
    changes=changes,
    pairs=tuple(pairs),
    common=('real',),
  )


def _embeddings(base: Section, is_pod: bool) -> Section:
  """Encoders are left out of all stages. The class token fills the place of absent query tokens."""
  if is_pod:
    raise errors.make(
      'study embeddings',
      'a base of released weights',
      'the base mini, whose parts can be left out',
      'assemble each set of encoders with sphinx_jax.convert, and train it with configs/recipe.py',
    )
  _stage2_alone(base, is_pod)
  stages = ('real', 'stage2')
  encoders = base['stage2']['model']['encoders']
  queries = encoders['qformer']['queries']
  of_channels = [name for name in encoders if name != 'qformer']
  sets = [chosen for count in (1, 2, 3) for chosen in itertools.combinations(of_channels, count)]
  changes: Changes = {'all': []}
  for chosen in sets:
    left_out = [name for name in encoders if name not in chosen]
    name = '_'.join(chosen) if len(chosen) < len(of_channels) else 'no_qformer'
    changes[name] = _of(stages, 'model.class_repeats', queries)
    for encoder in left_out:
      changes[name] += _of(stages, f'model.encoders.{encoder}', None)
  return dict(
    title='Embeddings: is the mix of encoders better than fewer of them?',
    changes=changes,
    pairs=tuple((name, 'all') for name in changes if name != 'all'),
  )


def _scales(base: Section, is_pod: bool) -> Section:
  """What the views of an image show: their number is that of the base."""
  _stage2_alone(base, is_pod)
  shown = {name: _of(('real', 'stage2'), 'model.shown', name) for name in ('global', 'sub')}
  changes: Changes = {'both': [], **shown}
  pairs = [(name, 'both') for name in shown]
  if not is_pod:
    small = [('data.scale', 0.5)]
    changes |= {f'small_{name}': rows + small for name, rows in changes.items()}
    pairs += [(f'small_{name}', 'small_both') for name in shown]
  return dict(
    title='Scales: does it help to see an image as a whole and in parts?',
    changes=changes,
    pairs=tuple(pairs),
  )


def _sampling(base: Section, is_pod: bool) -> Section:
  """Learned weights of tasks against fixed ones.

  The weights of the recipe were chosen by hand. `equal` are those of somebody who knows nothing
  about the tasks; plain text keeps its share. The learned ones begin at either.
  """
  if is_pod:
    raise errors.make(
      'study sampling',
      'a base without reference losses',
      'the base mini, which has them',
      'train stage 2 with fixed weights, and give its workdir as sampling.learned.reference',
    )
  _stage2_alone(base, is_pod)
  stage2, tasks = base['stage2'], _tasks_of(base, is_pod)
  run = dict(stage2)
  mini.learn_weights(run, 2 if stage2['steps'] < 10 else 8)
  learned = [(f'stage2.{key}', run[key]) for key in ('validation', 'eval_batches', 'sampling')]
  share = sum(stage2['mixture'][task]['weight'] for task in tasks) / len(tasks)
  equal = [(f'stage2.mixture.{task}.weight', share) for task in tasks]
  return dict(
    title='Sampling: do learned weights of the tasks help?',
    changes={
      'fixed': [],
      'learned': learned,
      'equal': equal,
      'equal_learned': [*equal, *learned],
    },
    pairs=(('learned', 'fixed'), ('equal_learned', 'equal'), ('equal', 'fixed')),
  )


def _unfreeze(base: Section, is_pod: bool) -> Section:
  """Stage 1 with and without training of the language model; stage 2 trains it in both.

  At laptop size the language model is first trained on text alone.
  """
  _stage2_alone(base, is_pod)
  real, sets = base['real'], base['real']['validation']
  quick = base['stage2']['steps'] < 10
  names = ['real', 'losses', 'stage2', 'evaluate']
  if not is_pod:
    text = real['mixture']['text']
    base['language'] = _with_steps(
      real,
      real['steps'] if quick else LANGUAGE,
      name='language',
      mixture=dict(text=text),
      validation={},
      trainable=(('llm/.*', 'train'), ('.*', 'frozen')),
    )
    real['init_from'] = 'language'
    sets = dict(real=mini.caption('real', 'test'), text=text | dict(split='test'))
    names = ['language', *names]
  base['losses'] = _losses('real', 'real', sets, 4 if quick else 16)
  _take(base, names)
  frozen = (('llm/.*', 'frozen'), *real['trainable'])
  return dict(
    title='Unfreezing: should stage 1 train the language model?',
    changes={'trained': [], 'frozen': [('real.trainable', frozen)]},
    pairs=(('frozen', 'trained'),),
  )


STUDIES = {
  'weights': _weights,
  'tasks': _tasks,
  'embeddings': _embeddings,
  'scales': _scales,
  'sampling': _sampling,
  'unfreeze': _unfreeze,
}
