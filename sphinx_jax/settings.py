"""Every setting of a training run, a recipe and a study: its meaning, its type and its range.

`check_run`, `check_recipe` and `check_study` compare a config with the tables below, before
anything is opened or compiled. The settings of a model are in models/settings.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import config_values as values, errors
from sphinx_jax.data import dialog, images, mixture, packing, record
from sphinx_jax.mix import tasks
from sphinx_jax.models import families, quantized
from sphinx_jax.models.settings import MODEL
from sphinx_jax.training import optimizer, state

_SEEDS = 2**63  # Seeds are int64.
_BATCH_POSITIONS = values.LARGEST_INT  # The update counts the positions of a batch in int32.

# An entry of `mixture` and `validation`. Sources check their own settings where they are opened.
ENTRY = {
  'source': values.text('dataset or reader, a name of sphinx_jax/datasets'),
  'weight': values.number('share of the examples or tokens, at any scale; 0 leaves the entry out'),
  'task': values.optional_or_none(values.text('a name of sphinx_jax/tasks')),
  'path': values.optional_or_none(values.text('file, relative to data_dir')),
  'root': values.optional_or_none(values.text('folder, relative to data_dir')),
  'split': values.optional_or_none(values.text("the dataset's own name of the split")),
  'cap': values.optional_or_none(
    values.positive("most examples that count, for sampling by 'temperature'")
  ),
  'seed': values.optional(values.integer('chooses wording and mirroring', low=0, high=_SEEDS - 1)),
  'max_turns': values.optional(values.integer('most questions about an image in an example')),
  'mirror': values.optional(values.share('share of the images that are shown mirrored')),
  'too_long': values.optional(
    values.choice('what happens to an example that does not fit into a row', record.TOO_LONG)
  ),
  'words': values.optional(values.integer('words of a record of plain text')),
  'frames': values.optional(values.integer('images that a video becomes', low=1)),
  '*': values.texts('setting of the source'),
}

# Of one update without microbatches.
OPTIMIZER = {
  'name': values.choice('optimizer', optimizer.NAMES),
  'lr': values.positive('peak learning rate'),
  'warmup': values.integer('updates until the peak', low=0),
  'decay_to': values.share('final learning rate as a share of lr'),
  'betas': values.sequence(
    "decay rates of AdamW's two moments", values.number('', high=1, without=(1,)), 2, 2
  ),
  'weight_decay': values.number('factor of decayed parameters; lr times it is subtracted'),
  'clip': values.positive('largest norm of the gradient; a large one does not clip'),
  'moment_dtype': values.choice('dtype of the first moment', optimizer.MOMENT_DTYPES),
}

RUN = {
  'kind': values.optional(values.choice('kind of recipe step', ['train'])),
  'name': values.text('name of the run in logs'),
  'seed': values.integer(
    'of fresh parameters and of the order of examples', low=-_SEEDS, high=_SEEDS - 1
  ),
  'model': MODEL,
  'tokenizer': values.nullable(values.text("a tokenizer.model; '' or None: that of init_from")),
  'tokenizer_add': values.optional(
    values.sequence(
      'further tokens, or files of them (.txt, one a line, or a list in .json); their rows begin '
      'as the mean of all others and are trained',
      values.text(''),
      least=0,
    )
  ),
  'dialog': {
    'system': values.text('text before the first turn of a dialog'),
    'style': values.optional(values.choice('dialog template', dialog.STYLES)),
    'images': values.optional(values.choice('place of a single image', dialog.IMAGES)),
  },
  'data_dir': values.nullable(values.text('root of all datasets')),
  'mixture': {'*': ENTRY},
  'validation': {'*': ENTRY},
  'image': {'alpha': values.choice('what becomes of transparent pixels', images.ALPHA)},
  'sampling': {
    'by': values.choice('what weights are shares of', tasks.RULES),
    'temperature': values.positive("for by='temperature'"),
    'stages': values.sequence(
      'weights from a position of the order of examples on',
      values.record('', values.integer('', high=_SEEDS - 1), values.by_name('', values.number(''))),
      least=0,
    ),
    'learned': values.OptionalSection(
      {
        'every': values.integer('updates between new weights'),
        'rate': values.positive('change of weights by excess loss, see mix/learned.py'),
        'limit': values.number('largest factor of a weight; its inverse is the least', low=1),
        'reference': values.text(
          "workdir of a run whose last held-out losses become reference_losses; '': none"
        ),
        'reference_losses': values.OptionalSection(
          {'*': values.number('held-out loss that a task should reach')}
        ),
      }
    ),
  },
  'max_skipped': values.share('share of unusable examples above which a run stops'),
  'batch': {
    'size': values.integer('rows of a batch over all devices'),
    'seq_len': values.integer('positions of a row', low=2),
    'images': values.integer('image slots of a row', low=0),
    'window': values.integer('examples that are packed together; all are in memory', high=2**16),
  },
  'loss_weighting': values.choice('total weight of an example', packing.LOSS_WEIGHTING),
  'loss_chunk': values.integer('positions whose logits exist at one time; 0: all', low=0),
  'trainable': values.sequence(
    'the first pattern that matches the path of a parameter decides',
    values.record('', values.pattern(''), values.choice('', state.CHOICES)),
  ),
  'lora': values.OptionalSection(
    {
      'rank': values.integer('rank of the adapters'),
      'alpha': values.positive('the factor of an adapter is alpha / rank'),
      'target': values.text("pattern of whole paths of layers with an adapter; 'none': no layer"),
      'ranks': values.sequence(
        'ranks in place of `rank`; the first pattern that matches decides, 0: no adapter',
        values.record('', values.pattern(''), values.integer('', low=0)),
        least=0,
      ),
      'rslora': values.flag('the factor is alpha / sqrt(rank)'),
      'dropout': values.share('share of the inputs of adapters that is 0 in training'),
      'neftune': values.number('noise on embeddings in training; 0: none'),
      'b_rate': values.positive('learning rate of lora_b over that of lora_a (LoRA+)'),
    }
  ),
  'preference': values.OptionalSection(
    {'beta': values.positive('DPO on pairs: how strongly the model is held at the base')}
  ),
  'frozen_dtype': values.optional(
    values.choice("frozen matrices at rest; '': the compute dtype", ['', *quantized.STORED])
  ),
  'optimizer': OPTIMIZER
  | {
    'accumulate': values.integer(
      'microbatches of a batch; -1: so many that a device has few positions at a time',
      low=-1,
      without=(0,),
    ),
  },
  'steps': values.integer('updates'),
  'log_every': values.integer('updates between lines of metrics'),
  'profile': values.sequence(
    'first and last update of a profiler trace; (): none', values.integer(''), least=0, most=2
  ),
  'wandb': values.text("project of Weights & Biases; '': none"),
  'cache_features': values.text(
    "directory that keeps the features of frozen encoders for later epochs and runs; '': none"
  ),
  'eval_every': values.integer('updates between validations; 0: only at the end', low=0),
  'eval_batches': values.integer(
    'batches of each validation set; all are in memory', low=0, high=10_000
  ),
  'checkpoint': {
    'every': values.integer('updates between checkpoints'),
    'keep': values.integer('newest checkpoints that are kept'),
    'keep_every': values.integer('steps it divides are kept too; 0: none', low=0),
  },
  'mesh': {
    axis: values.integer(
      f'devices of the axis {axis}; -1: those that the other axes leave', low=-1, without=(0,)
    )
    for axis in ('data', 'fsdp', 'tensor')
  }
  | {
    'expert': values.optional(
      values.integer('devices over which experts are split; -1: see above', low=-1, without=(0,))
    )
  },
  'init_from': values.nullable(values.text("checkpoint to start from; '' or None: fresh weights")),
}

# Kind of a recipe step -> the table of its section.
_KIND = values.text('kind of the step')
_OBJECTIVE = {
  'trains': values.sequence('names of encoders', values.text('')),
  'data': ENTRY,
  'optimizer': OPTIMIZER,
  'steps': values.integer('updates'),
}
_TEXT = {
  'width': values.integer('channels'),
  'layers': values.integer('layers'),
  'heads': values.integer('attention heads'),
}
_PRETRAIN = {
  'kind': _KIND,
  **{
    name: RUN[name]
    for name in (
      *('seed', 'model', 'tokenizer', 'dialog', 'data_dir', 'image', 'max_skipped'),
      *('log_every', 'mesh'),
    )
  },
  'batch': {
    'size': values.integer('images of a batch over all devices', low=2),
    'seq_len': values.integer('positions of a caption with its dialog', low=2),
    'text': values.integer('longest caption in tokens; of a longer one the rest is cut off'),
    'window': RUN['batch']['window'],
  },
  'objectives': {
    'contrast': values.OptionalSection(
      {**_OBJECTIVE, 'width': values.integer('channels of the common space'), 'text': _TEXT}
    ),
    'distill': values.OptionalSection(
      {
        **_OBJECTIVE,
        'prototypes': values.integer('outputs of the head', low=2),
        'momentum': values.share('share of its old weights that the teacher keeps in an update'),
        'small': values.integer('small crops of an image', low=0),
        'hidden': values.share('share of the cells that the student does not see'),
      }
    ),
    'captions': values.OptionalSection({**_OBJECTIVE, 'text': _TEXT}),
  },
  'checkpoint': {name: RUN['checkpoint'][name] for name in ('every', 'keep')},
}
STEPS = {
  'data': {
    'kind': _KIND,
    'image_size': values.integer('pixels along one side of a drawn image', low=32, high=8192),
    'seed': values.integer('of the drawn scenes', low=0, high=_SEEDS - 1),
    'scale': values.optional(
      values.number('size of drawn objects and words over the usual one', high=1, without=(0,))
    ),
    'vocab': values.integer(
      'ids of the tokenizer: 256 bytes, 3 control ids, 4 symbols and the letters', low=264
    ),
    'lines': values.integer('most dialogs of each mixture entry that train the tokenizer'),
    'dataset_files': values.flag('also write the scenes in the formats of published datasets'),
    'train': {
      **{name: values.integer('scenes') for name in ('objects', 'words', 'page', 'figure')},
      'text': values.optional(values.integer('sentences')),
    },
    'heldout': values.integer('scenes of each kind in the validation and test splits'),
  },
  'pretrain': _PRETRAIN,
  'train': RUN,
  'mix': {
    'kind': _KIND,
    'inputs': values.sequence('training runs to mix', values.text(''), 2, 2),
    'coefficients': values.sequence(
      'shares of the first input', values.number('', low=-values.LARGEST)
    ),
  },
  'losses': {
    'kind': _KIND,
    'checkpoint': values.text('training run or mix that is measured'),
    'like': values.text('training run with its model, tokenizer and batches'),
    'sets': {'*': ENTRY},
    'batches': values.integer('batches of each set'),
    'seed': values.integer('of the order of examples', low=-_SEEDS, high=_SEEDS - 1),
  },
  'evaluate': {
    'kind': _KIND,
    'checkpoint': values.text('training run, or mix with `like`, that answers'),
    'like': values.optional(
      values.text('training run whose mixture has the tasks; absent: the checkpoint')
    ),
    'blind': values.optional(values.flag('ask without the image, too')),
    'tasks': values.sequence('entries of the mixture', values.text('')),
    'split': values.text("split of the questions; 'validation': the validation sets of the run"),
    'examples': values.integer('most questions of a task'),
    'batch_size': values.integer('prompts that are decoded together'),
  },
  'report': {
    'kind': _KIND,
    'targets': {'*': values.share('score to reach')},
    'studies': values.optional(
      values.sequence('studies whose results are shown, if there are any', values.text(''), least=0)
    ),
  },
}

STUDY = {
  'title': values.text('the question'),
  'changes': {
    '*': values.sequence(
      'changes of the base, which is a recipe: dotted setting, value',
      values.record('', values.text(''), values.anything('')),
      least=0,
    )
  },
  'pairs': values.sequence(
    'comparisons: change, baseline', values.record('', values.text(''), values.text(''))
  ),
  'seeds': values.integer('runs of each change; run i adds i to the seeds of training'),
  'common': values.sequence('training runs whose seed stays', values.text(''), least=0),
  'lease_seconds': values.positive('time after which the step of a process that is gone is free'),
}


Problems = Iterator[tuple[str, str, str, str]]  # (setting, got, expected, do)


def is_recipe(config: Any) -> bool:
  """Returns whether a config is that of a recipe: its `steps` are names."""
  return isinstance(config.get('steps'), (tuple, list))


def check_run(config: ConfigDict, path: str = '') -> None:
  """Checks the config of one training run.

  Args:
    config: the config.
    path: dotted path of the run in a recipe, for error messages.

  Raises:
    SphinxError: it is the config of a recipe, or a setting is wrong or contradicts another.
  """
  if is_recipe(config):
    raise errors.make(
      'config',
      f'that of a recipe, with the steps {", ".join(map(str, config.steps))}',
      'that of one training run',
      'run it with python -m sphinx_jax.recipe',
    )
  values.check(config, RUN, path)
  for key, got, expected, do in _contradictions(config):
    raise errors.make(f'{path}.{key}' if path else key, got, expected, do)


def _contradictions(run: Mapping[str, Any]) -> Problems:
  """Yields (setting, got, expected, do) of settings that contradict each other."""
  batch, optimizer = run['batch'], run['optimizer']
  if not run['mixture']:
    yield 'mixture', 'no entries', 'at least one', 'name what to train on'
  if optimizer['warmup'] > run['steps']:
    yield (
      'optimizer.warmup',
      f'{optimizer["warmup"]}',
      f'at most steps, {run["steps"]}',
      'lower it or raise steps; the learning rate would never reach optimizer.lr',
    )
  if batch['size'] * batch['seq_len'] > _BATCH_POSITIONS:
    yield (
      'batch.size',
      f'{batch["size"]} rows of {batch["seq_len"]} positions',
      f'at most {_BATCH_POSITIONS} positions',
      'lower batch.size or batch.seq_len',
    )
  if batch['size'] % optimizer['accumulate']:
    yield (
      'batch.size',
      f'{batch["size"]}',
      f'a multiple of optimizer.accumulate, {optimizer["accumulate"]}',
      'change one of them',
    )
  lora = run.get('lora')
  if lora and not run['init_from']:
    yield 'lora', 'a run from fresh weights', 'init_from', 'name the weights that stay frozen'
  if run.get('tokenizer_add') and not run['init_from']:
    yield (
      'tokenizer_add',
      'tokens for fresh weights',
      'init_from',
      'name the weights whose vocabulary grows, or train a tokenizer that has the tokens',
    )
  if run.get('preference') and not lora:
    yield (
      'preference',
      'a run without adapters',
      'a section lora: the model without adapters is the reference',
      'take --config=forkme:FILE,DIR,dpo',
    )
  if run.get('preference') and run['loss_weighting'] != 'token':
    yield (
      'loss_weighting',
      f"'{run['loss_weighting']}' with a section preference",
      "'token', because the log-probability of an answer is a sum over its tokens",
      'correct it',
    )
  if run.get('preference') and run['model']['dtype'] == 'float16':
    yield (
      'model.dtype',
      "'float16' with a section preference, whose loss is not scaled",
      "'bfloat16' or 'float32'",
      'correct it',
    )
  if run.get('frozen_dtype') and not lora:
    yield (
      'frozen_dtype',
      f"'{run['frozen_dtype']}' without adapters",
      "'', or a section lora",
      'take --config=forkme:FILE,DIR,qlora',
    )
  if run['profile'] and not (
    len(run['profile']) == 2 and run['profile'][0] <= run['profile'][1] <= run['steps']
  ):
    yield (
      'profile',
      f'{run["profile"]}',
      f'the first and the last update to trace, of {run["steps"]}',
      'correct it',
    )
  if run['validation'] and not run['eval_batches']:
    yield (
      'eval_batches',
      f'0 with the validation sets {", ".join(run["validation"])}',
      'at least 1',
      'raise it, or leave the validation sets out',
    )
  if run['sampling']['by'] == 'learned':
    yield from _learned_problems(run)


def _learned_problems(run: Mapping[str, Any]) -> Problems:
  """Yields what keeps the weights of the mixture from being learned."""
  sampling, learned = run['sampling'], run['sampling'].get('learned')
  weights = {name: entry['weight'] for name, entry in run['mixture'].items() if entry['weight']}
  if not learned:
    yield 'sampling.by', "'learned' without a section sampling.learned", 'one', 'see docs/data.md'
    return
  if sampling['stages']:
    yield 'sampling.stages', "stages with by 'learned'", '(), because they are learned', 'remove it'
  if learned['every'] >= run['steps']:
    yield (
      'sampling.learned.every',
      f'{learned["every"]}',
      f'less than steps, {run["steps"]}',
      'lower it; the weights would never change',
    )
  least = min(weights, key=weights.get, default=None)
  share = weights.get(least, 1) / (sum(weights.values()) or 1)
  count = mixture.BLOCK * share / learned['limit'] ** 2
  if count < 1:
    yield (
      'sampling.learned.limit',
      f"{learned['limit']:g}, which may leave '{least}' {count:.2g} of {mixture.BLOCK} examples",
      'at least one of them for every task',
      f'lower it, raise mixture.{least}.weight, or set that weight to 0',
    )
  references = learned.get('reference_losses', {})
  for name in references:
    if name not in run['mixture']:
      raise errors.unknown('sampling.learned.reference_losses', name, run['mixture'])
  needed = {'validation': run['validation']}
  if not learned['reference']:
    needed['sampling.learned.reference_losses'] = references
  for section, given in needed.items():
    missing = [name for name in weights if name not in given]
    if missing:
      yield (
        section,
        f'none for {", ".join(missing)}, only for {", ".join(given) or "no entry"}',
        "one for each entry of the mixture, because sampling.by is 'learned'",
        'add the missing ones, or take fixed weights',
      )


def check_steps(config: ConfigDict) -> None:
  """Checks that every step of a recipe has a section of a known kind.

  Raises:
    SphinxError: it is no recipe, or a step or its kind is unknown.
  """
  if not is_recipe(config):
    raise errors.make(
      'config',
      'that of one training run' if 'mixture' in config else f'the settings {", ".join(config)}',
      'that of a recipe, whose steps are names of its sections',
      'run a training run with python -m sphinx_jax.train',
    )
  names = [name for name in config if name != 'steps']
  for name in config.steps:
    if name not in names:
      raise errors.unknown('recipe step', name, names)
  for name in names:
    kind = config[name].get('kind') if isinstance(config[name], ConfigDict) else config[name]
    if kind not in STEPS:
      raise errors.unknown(f"kind of recipe step '{name}'", kind, STEPS)


def check_recipe(config: ConfigDict) -> None:
  """Checks the config of a recipe: its steps, their sections, and what steps take from each other.

  Raises:
    SphinxError: it is no recipe, or a setting is wrong or contradicts another.
  """
  check_steps(config)
  for name in config:
    if name != 'steps' and config[name].kind == 'train':
      check_run(config[name], name)
    elif name != 'steps':
      values.check(config[name], STEPS[config[name].kind], name)
  for number, name in enumerate(config.steps):
    before, problems = config.steps[:number], _ORDER[config[name].kind]
    if name in before:
      raise errors.make('steps', f"'{name}' twice", 'every step once', 'leave one out')
    for key, got, expected, do in problems(config, name, before):
      raise errors.make(f'{name}.{key}', got, expected, do)


def check_study(config: ConfigDict) -> None:
  """Checks the config of a study, except what its changes make of the base.

  Raises:
    SphinxError: it is none, or a setting is wrong or contradicts another.
  """
  if 'base' not in config:
    raise errors.make(
      'config',
      f'the settings {", ".join(config)}',
      'those of a study, with a base and changes',
      'take --config=study:NAME',
    )
  check_recipe(config.base)
  values.check({key: value for key, value in config.items() if key != 'base'}, STUDY)
  for name in (name for pair in config.pairs for name in pair):
    if name not in config.changes:
      raise errors.unknown('pairs', name, config.changes)


def _of_kind(config: ConfigDict, names: Sequence[str], kind: str) -> list[str]:
  return [name for name in names if config[name].kind == kind]


def _path_problems(config: ConfigDict, name: str, before: Sequence[str], *keys: str) -> Problems:
  """Yields paths of a section that a later step writes."""
  for key in keys:
    step = (config[name][key] or '').split('/')[0]
    if step in config.steps and step not in before:
      yield (
        key,
        f"'{config[name][key]}'",
        f'what a step before {name} writes',
        'change the order of steps',
      )


def _pretrain_problems(config: ConfigDict, name: str, before: Sequence[str]) -> Problems:
  """Yields paths that a later step writes, and objectives that do not fit the model."""
  section = config[name]
  yield from _path_problems(config, name, before, 'data_dir', 'tokenizer')
  known, taken = families.encoder_names(section.model), {}
  if not section.objectives:
    yield 'objectives', 'none', 'at least one', 'name one, or leave the step out'
  for key, objective in section.objectives.items():
    where = f'objectives.{key}'
    for encoder in objective.trains:
      if encoder not in known:
        yield (
          f'{where}.trains',
          f"'{encoder}'",
          f'encoders of the model: {", ".join(known) or "none"}',
          'correct it',
        )
      if encoder in taken:
        yield (
          f'{where}.trains',
          f"'{encoder}', which {taken[encoder]} trains",
          'every encoder once',
          'leave one out',
        )
      taken[encoder] = key
    if key != 'contrast' and len(objective.trains) > 1:
      yield f'{where}.trains', f'{len(objective.trains)}', 'one encoder', 'leave the others out'
    if objective.optimizer.warmup > objective.steps:
      yield (
        f'{where}.optimizer.warmup',
        f'{objective.optimizer.warmup}',
        f'at most steps, {objective.steps}',
        'lower it or raise steps',
      )
  if section.batch.text > section.batch.seq_len:
    yield (
      'batch.text',
      f'{section.batch.text}',
      f'at most batch.seq_len, {section.batch.seq_len}',
      'lower it',
    )


def _train_problems(config: ConfigDict, name: str, before: Sequence[str]) -> Problems:
  """Yields paths of a training run that a later step writes, and a tokenizer that is too large."""
  run = config[name]
  yield from _path_problems(config, name, before, 'data_dir', 'tokenizer', 'init_from')
  step = (run.tokenizer or '').split('/')[0]
  if step in _of_kind(config, before, 'data') and config[step].vocab > run.model.llm.vocab:
    yield (
      'model.llm.vocab',
      f'{run.model.llm.vocab}',
      f'at least {step}.vocab {config[step].vocab}',
      'change one of them',
    )


def _mix_problems(config: ConfigDict, name: str, before: Sequence[str]) -> Problems:
  """Yields inputs that are no earlier runs, and a first run that cannot measure the mixes."""
  runs = _of_kind(config, before, 'train')
  for run in config[name].inputs:
    if run not in runs:
      yield 'inputs', f"'{run}'", f'a training run before {name}: {", ".join(runs)}', 'correct it'
  first = config[name].inputs[0]
  if not {'real', 'synthetic'} <= set(config[first].validation):
    yield (
      'inputs',
      f"'{first}' with the validation sets {', '.join(config[first].validation) or 'none'}",
      'the validation sets real and synthetic, which measure the mixes',
      f'name them in {first}.validation',
    )
  if config[first].eval_batches < 2:
    yield (
      'inputs',
      f"'{first}' with eval_batches {config[first].eval_batches}",
      'at least 2: one half chooses the mix, the other half measures it',
      f'raise {first}.eval_batches',
    )


def _evaluate_problems(config: ConfigDict, name: str, before: Sequence[str]) -> Problems:
  """Yields a checkpoint that is no earlier run, and tasks that its mixture lacks."""
  section, runs = config[name], _of_kind(config, before, 'train')
  if 'like' in section:
    yield from _like_problems(config, name, before)
  elif section.checkpoint not in runs:
    yield (
      'checkpoint',
      f"'{section.checkpoint}'",
      f'a training run before {name}: {", ".join(runs)}',
      'correct it',
    )
  run = section.get('like', section.checkpoint)
  for task in section.tasks:
    if task not in config[run].mixture:
      mixture = ', '.join(config[run].mixture)
      yield 'tasks', f"'{task}'", f'entries of {run}.mixture: {mixture}', 'leave it out'


def _like_problems(config: ConfigDict, name: str, before: Sequence[str]) -> Problems:
  """Yields a checkpoint that no earlier step writes, and a `like` that is no training run."""
  section = config[name]
  checkpoints = _of_kind(config, before, 'train') + _of_kind(config, before, 'mix')
  if section.checkpoint not in checkpoints:
    yield (
      'checkpoint',
      f"'{section.checkpoint}'",
      f'a training run or a mix before {name}: {", ".join(checkpoints)}',
      'correct it',
    )
  runs = _of_kind(config, config.steps, 'train')
  if section.like not in runs:
    yield 'like', f"'{section.like}'", f'a training run: {", ".join(runs)}', 'correct it'


def _report_problems(config: ConfigDict, name: str, before: Sequence[str]) -> Problems:
  """Yields a report before the steps that it is about."""
  if name != config.steps[-1] or not _of_kind(config, before, 'evaluate'):
    yield (
      'kind',
      f'report after {", ".join(before) or "no steps"}',
      'the last step, after one of kind evaluate',
      'change the order of steps',
    )


_ORDER = {
  'data': lambda config, name, before: (),
  'pretrain': _pretrain_problems,
  'train': _train_problems,
  'mix': _mix_problems,
  'losses': _like_problems,
  'evaluate': _evaluate_problems,
  'report': _report_problems,
}
