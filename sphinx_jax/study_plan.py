"""The plan of a study: its runs, their steps, and which of them are the same step.

A study has a base recipe and named changes of it, each over several seeds. A step of a run is
identified by its settings and by the steps that it reads, so runs that have a step in common share
it: it is made once, and whoever needs it reads it where it stands. Its folder has the name of the
step and a hash of what identifies it: `stage2-0c1d2e3f`. All steps of a study are in one folder,
like those of one recipe with many steps, and a run is a recipe whose sections have these names.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from sphinx_jax import run, settings
from sphinx_jax.core import config as config_lib, errors

# Settings at the top of a section that name an earlier step, or a path that begins with one.
REFERENCES = ('data_dir', 'tokenizer', 'init_from', 'inputs', 'checkpoint')
_LIKE = 'like'  # Names a step for its settings. Its files are not read.


class Step(NamedTuple):
  """A step that one or several runs have.

  Attributes:
    name: its folder, which is also the name of its section in `recipe`.
    recipe: config of a recipe that has the step and those before it, by the names of their folders.
    parents: folders of the steps whose files it reads.
  """

  name: str
  recipe: ConfigDict
  parents: tuple[str, ...]


class Run(NamedTuple):
  """A change with a seed.

  Attributes:
    change: name of the change.
    seed: the seed that is added to those of its training runs.
    recipe: config of the recipe.
    folders: step of the recipe -> its folder.
  """

  change: str
  seed: int
  recipe: ConfigDict
  folders: Mapping[str, str]


class Plan(NamedTuple):
  """All runs, seed by seed, and all steps by their folders, each after those that it reads."""

  runs: tuple[Run, ...]
  steps: Mapping[str, Step]


def plan(study: ConfigDict) -> Plan:
  """Returns the plan of a study.

  Raises:
    SphinxError: a change is of a setting that the recipe has not, or makes a recipe that is wrong.
  """
  runs, steps = [], {}
  for seed in range(study.seeds):
    for change in study.changes:
      recipe = seeded(changed(study, change), seed, study.common)
      folders = _folders(recipe)
      runs.append(Run(change, seed, recipe, folders))
      renamed = _renamed(recipe, folders)
      for name, folder in folders.items():
        if folder in steps:
          continue
        parents = tuple(folders[parent] for parent in _parents(recipe, name))
        if recipe[name].kind == 'data':  # All changes share the tokenizer of the base's texts.
          data = {name: recipe[name].to_dict()}
          base = ConfigDict(_without_report(study.base.to_dict()) | data)
          steps[folder] = Step(folder, _renamed(base, _folders(base)), parents)
        else:
          steps[folder] = Step(folder, renamed, parents)
  return Plan(tuple(runs), steps)


def changed(study: ConfigDict, change: str) -> ConfigDict:
  """Returns the recipe of a change, without a report.

  Raises:
    SphinxError: see `plan`.
  """
  recipe = ConfigDict(_without_report(study.base.to_dict()))
  for path, value in study.changes[change]:
    *sections, last = path.split('.')
    section = recipe
    for name in sections:
      if not isinstance(section, ConfigDict) or name not in section:
        who = f'setting {path} of change {change}'
        raise errors.unknown(who, name, section if isinstance(section, ConfigDict) else ())
      section = section[name]
    section[last] = ConfigDict(value) if isinstance(value, dict) else value
  try:
    settings.check_steps(recipe)
    recipe = ConfigDict({'steps': recipe.steps} | {name: recipe[name] for name in recipe.steps})
    settings.check_recipe(recipe)
  except errors.SphinxError as error:
    raise errors.SphinxError(f"change '{change}': {error}") from error
  return recipe


def seeded(recipe: ConfigDict, seed: int, common: tuple[str, ...]) -> ConfigDict:
  """Returns a recipe with `seed` added to the seeds of its training runs that are not `common`."""
  recipe = ConfigDict(recipe.to_dict())
  for name in run.training_steps(recipe):
    if name not in common:
      recipe[name].seed += seed
  return recipe


def _without_report(recipe: dict[str, Any]) -> dict[str, Any]:
  """A recipe without its report, which is about one run."""
  steps = tuple(name for name in recipe['steps'] if recipe[name]['kind'] != 'report')
  return {'steps': steps} | {name: recipe[name] for name in steps}


def _head(value: Any) -> str:
  return value.split('/')[0] if isinstance(value, str) else ''


def _parents(recipe: ConfigDict, name: str) -> list[str]:
  """The steps whose files a step reads."""
  found = {}
  for key in REFERENCES:
    value = recipe[name].get(key)
    for item in value if isinstance(value, tuple) else [value]:
      if _head(item) in recipe.steps:
        found[_head(item)] = None
  return list(found)


def _pointed(section: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, Any]:
  """A section whose references name folders."""

  def point(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
      return tuple(map(point, value))
    head = _head(value)
    return folders[head] + value[len(head) :] if head in folders else value

  return {
    key: point(value) if key in (*REFERENCES, _LIKE) else value for key, value in section.items()
  }


def _folders(recipe: ConfigDict) -> dict[str, str]:
  """Returns {step: its folder}. Settings that may change between starts do not count."""
  folders: dict[str, str] = {}
  for name in recipe.steps:
    section = _pointed(config_lib.to_dict(recipe[name]), folders)
    for path in run.RESIZABLE if section['kind'] in ('train', 'pretrain') else ():
      *parents, last = path.split('.')
      place = section
      for parent in parents:
        place = place.get(parent, {})
      place.pop(last, None)
    text = json.dumps(section, sort_keys=True)
    folders[name] = f'{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}'
  return folders


def _renamed(recipe: ConfigDict, folders: Mapping[str, str]) -> ConfigDict:
  """A recipe whose steps have the names of their folders."""
  sections = {folders[name]: _pointed(recipe[name].to_dict(), folders) for name in recipe.steps}
  return ConfigDict({'steps': tuple(sections), **sections}).lock()
