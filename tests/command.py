"""Runs an entry point in this process, which saves the seconds that a new one needs to start."""

import logging
import os
import runpy
import sys
from unittest import mock

import jax
import pytest
from absl import app, flags

from sphinx_jax.core.progress import log


def run(capsys: pytest.CaptureFixture, module: str, *arguments: str) -> tuple[int, str, str]:
  """Returns exit code, stdout and stderr of `python -m sphinx_jax.MODULE ARGUMENTS`."""
  known, state = set(flags.FLAGS), (log.propagate, log.handlers[:], log.level)
  environment, level = dict(os.environ), logging.getLogger('absl').level
  settings = dict(jax.config.values)

  def run_app(main, flags_parser):
    main(flags_parser([module, *arguments]))

  capsys.readouterr()
  code = 0
  try:
    with mock.patch.object(app, 'run', run_app):
      runpy.run_module(f'sphinx_jax.{module}', run_name='__main__', alter_sys=True)
  except SystemExit as end:
    code = end.code or 0
  finally:
    for name in set(flags.FLAGS) - known:
      # Libraries that were imported on the way, like array_record, keep their flags.
      if flags.FLAGS.find_module_defining_flag(name) not in sys.modules:
        delattr(flags.FLAGS, name)
    log.propagate, log.handlers[:] = state[0], state[1]
    log.setLevel(state[2])
    logging.getLogger('absl').setLevel(level)
    for name in set(os.environ) - set(environment):
      del os.environ[name]
    for name, value in settings.items():
      if jax.config.values[name] != value:
        jax.config.update(name, value)
  output = capsys.readouterr()
  return code, output.out, output.err


def error(capsys: pytest.CaptureFixture, module: str, *arguments: str) -> str:
  """The one line with which an entry point refuses its arguments."""
  code, _, stderr = run(capsys, module, *arguments)
  assert code == 2 and 'Traceback' not in stderr, stderr
  (line,) = [line for line in stderr.splitlines() if line.startswith('error: ')]
  return line
