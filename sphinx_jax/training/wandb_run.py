"""A run of Weights & Biases as a second place for metrics, if `config.wandb` names a project.

WANDB_MODE=offline and the other variables of wandb apply. A resumed run continues its id.
"""

import importlib
import importlib.util
import os
import uuid
from collections.abc import Mapping
from typing import Any

from etils import epath
from ml_collections import ConfigDict

from sphinx_jax.core import config as config_lib, errors, files


def check(project: str) -> None:
  """Raises SphinxError if there is a project but no wandb."""
  if project and importlib.util.find_spec('wandb') is None:
    raise errors.make(
      'wandb',
      f"the project '{project}', but the package wandb is not installed",
      'the package, or no project',
      "install it (pip install 'sphinx_jax[wandb]') or leave config.wandb empty",
    )


def start(config: ConfigDict, workdir: str | os.PathLike) -> Any:
  """Starts the run, or continues that of an earlier start in the same workdir.

  Returns:
    `wandb.Run`; `write` takes it.
  """
  file = epath.Path(workdir) / 'wandb_id'
  if not file.exists():
    files.write_atomic(file, uuid.uuid4().hex[:8])
  return importlib.import_module('wandb').init(
    project=config.wandb,
    name=config.name,
    id=file.read_text(),
    resume='allow',
    dir=None if files.is_remote(file) else os.fspath(workdir),
    config=config_lib.to_dict(config),
  )


def write(run: Any, line: Mapping[str, float]) -> None:
  """Writes a line of metrics. wandb ignores those of steps that it has had before."""
  values = dict(line)
  run.log(values, step=values.pop('step'))
