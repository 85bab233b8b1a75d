"""Old names that still work: of settings, values, flags and commands.

When a name that users write down changes, its old form is added to a table here. Old names are
replaced where they enter the program, so no other file has to know them:

    upgrade_config, upgrade_loaded   a config of a run, a checkpoint or a config file
    upgrade_arguments                flags and `--config.x=y` overrides of a command line
    command_of_flags, run_command    flags and modules that have become another command
    config_argument, source          a word after `--config=NAME:`, a dataset source

Each old name is reported once per process.
"""

import copy
import pathlib
import re
import runpy
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core.progress import log

# Kind of a config section -> {old dotted key: new dotted key}. The config of one training run is
# a section of kind 'train'. A recipe has one section for each of its steps.
KEYS = {
  'train': {
    'batch.rows': 'batch.size',
    'batch.length': 'batch.seq_len',
    'trained': 'trainable',
  },
  'data': {'official': 'dataset_files'},
  'evaluate': {'rows': 'batch_size'},
  'report': {'aims': 'targets'},
}

# Values of the rules in `trainable`, and of `source` in the entries of a mixture.
TRAINABLE = {'none': 'frozen'}
SOURCES = {'built': 'array_record'}

# Settings that older configs lack: dotted section of a training run -> {key: value}. The values are
# those that the code used when the setting was absent. A section that is absent stays absent, and
# '' is the run itself: a config with a mixture.
DEFAULTS: dict[str, dict[str, Any]] = {
  '': {
    'loss_chunk': 0,
    'max_skipped': 0.5,
    'sampling': {},
    'image': {},
    'profile': (),
    'wandb': '',
    'cache_features': '',
  },
  'sampling': {'by': 'examples', 'temperature': 1.0, 'stages': ()},
  'image': {'alpha': 'drop'},
  'checkpoint': {'keep_every': 0},
  'model': {'attention': 'auto'},
}

# Config name -> {old word of its argument: new word}.
CONFIG_ARGUMENTS = {'mini': {'official': 'dataset_files'}}

# Command -> {old flag: new flag}.
FLAGS = {'evaluate': {'rows': 'batch_size', 'official': 'official_scoring'}}

# Module that was run with `python -m` -> the module that replaced it.
COMMANDS = {'sphinx_jax.data.build': 'sphinx_jax.prepare'}
# (command, boolean flag) -> the module that now does what the command did with this flag.
COMMANDS_OF_FLAGS = {('mix_weights', 'curve'): 'sphinx_jax.mix_curve'}

# The name of a recipe's step before a key, in a --config override. Sections of a run are no steps.
_STEP = r'((?!(?:mixture|validation|batch)\.)\w+\.)'
_FLAG = re.compile(r'(--?)(no)?([A-Za-z_][\w.]*)(=.*)?', re.DOTALL)

_reported: set[tuple[str, str]] = set()


def upgrade_config(config: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a plain config with current names, and with the settings that older configs lack.

  Args:
    config: nested dictionaries, as JSON has them: the config of one training run, a recipe, or
      any other config, which is only copied.
  """
  upgraded = copy.deepcopy(dict(config))
  _upgrade(upgraded)
  return upgraded


def upgrade_loaded(config: ConfigDict) -> ConfigDict:
  """Does the same to the config of a config file, in place; returns it locked."""
  config.unlock()
  _upgrade(config)
  return config.lock()


def upgrade_arguments(arguments: Sequence[str]) -> list[str]:
  """Returns a command line (program name first) with the current names of flags and overrides."""
  flags = FLAGS.get(_command(arguments[0]), {})
  upgraded = [arguments[0]]
  for argument in arguments[1:]:
    match = _FLAG.fullmatch(argument)
    if match:
      dashes, negation, name, value = match.groups(default='')
      if name.startswith('config.'):
        new_name = f'config.{_upgrade_override(name.removeprefix("config."))}'
      elif negation + name in flags:  # A flag whose own name starts with 'no'.
        negation, name, new_name = '', negation + name, flags[negation + name]
      else:
        new_name = flags.get(name, name)
      if new_name != name:
        _report('flag', f'--{name}', f'--{new_name}')
        argument = f'{dashes}{negation}{new_name}{value}'
    upgraded.append(argument)
  return upgraded


def command_of_flags(arguments: Sequence[str]) -> list[str] | None:
  """Returns the arguments of `python` for a flag that became a command of its own, or None.

  Args:
    arguments: a command line, the program name first.
  """
  for (command, flag), module in COMMANDS_OF_FLAGS.items():
    given = [argument for argument in arguments[1:] if argument in (f'--{flag}', f'-{flag}')]
    if command == _command(arguments[0]) and given:
      _report('command', f'{command} --{flag}', f'python -m {module}')
      return ['-m', module, *(item for item in arguments[1:] if item not in given)]
  return None


def run_command(old: str) -> None:
  """Runs the module that replaced the command `python -m old`."""
  _report('command', f'python -m {old}', f'python -m {COMMANDS[old]}')
  runpy.run_module(COMMANDS[old], run_name='__main__', alter_sys=True)


def config_argument(config: str, word: str) -> str:
  """Returns the current form of a word in a config's argument (`--config=mini:quick`)."""
  return _new_name(CONFIG_ARGUMENTS.get(config, {}), word, f'argument of config {config}')


def source(name: str) -> str:
  """Returns the current name of a dataset source."""
  return _new_name(SOURCES, name, 'source')


def _upgrade(config: Any) -> None:
  if isinstance(config.get('steps'), (list, tuple)):
    for name in list(config):
      if _is_section(config[name]):
        _upgrade_section(config[name], config[name].get('kind'))
  else:
    _upgrade_section(config, 'train')


def _upgrade_section(section: Any, kind: str | None) -> None:
  for old, new in KEYS.get(kind, {}).items():
    *parents, old_key = old.split('.')
    parent = _find(section, parents)
    if parent is not None and old_key in parent:
      # A file that changes an old key of a shipped config has both; its own value is the old one.
      parent[new.split('.')[-1]] = parent[old_key]
      del parent[old_key]
      _report('config key', old, new)
  if kind == 'train':
    _upgrade_values(section)
    _add_defaults(section)


def _upgrade_values(run: Any) -> None:
  rules = run.get('trainable')
  if isinstance(rules, (list, tuple)) and any(_has_old_value(rule) for rule in rules):
    run['trainable'] = type(rules)(
      type(rule)((rule[0], _new_name(TRAINABLE, rule[1], 'value of trainable')))
      if _has_old_value(rule)
      else rule
      for rule in rules
    )
  for group in ('mixture', 'validation'):
    entries = run.get(group)
    for name in entries if _is_section(entries) else ():
      entry = entries[name]
      if _is_section(entry) and entry.get('source') in SOURCES:
        entry['source'] = source(entry['source'])


def _has_old_value(rule: Any) -> bool:
  is_pair = isinstance(rule, (list, tuple)) and len(rule) == 2
  return is_pair and isinstance(rule[1], str) and rule[1] in TRAINABLE


def _add_defaults(run: Any) -> None:
  for path, settings in DEFAULTS.items():
    section = _find(run, path.split('.') if path else [])
    if section is None or (path == '' and 'mixture' not in run):
      continue
    for key, value in settings.items():
      if key not in section or (key == 'sampling' and section[key] is None):
        section[key] = copy.deepcopy(value)


def _find(section: Any, path: Sequence[str]) -> Any:
  """Returns the section at a path, or None if it is absent or no section."""
  for key in path:
    section = section.get(key)
    if not _is_section(section):
      return None
  return section


def _is_section(value: Any) -> bool:
  return isinstance(value, (dict, ConfigDict))


def _upgrade_override(path: str) -> str:
  """Returns the current form of the dotted path of a --config override."""
  for kind, names in KEYS.items():
    # A key of a run has a plain value, and no step before it unless the run is part of a recipe.
    before, after = (f'{_STEP}?', '()') if kind == 'train' else (_STEP, r'(\..+)?')
    for old, new in names.items():
      match = re.fullmatch(f'{before}{re.escape(old)}{after}', path)
      if match:
        return f'{match[1] or ""}{new}{match[2] or ""}'
  return path


def _new_name(names: Mapping[str, str], name: str, kind: str) -> str:
  if name not in names:
    return name
  _report(kind, name, names[name])
  return names[name]


def _report(kind: str, old: str, new: str) -> None:
  if (kind, old) not in _reported:
    _reported.add((kind, old))
    log.warning("%s '%s' has been renamed: use '%s'", kind, old, new)


def _command(program: str) -> str:
  return pathlib.Path(program).stem
