"""One run of the quick recipe, as a user starts it."""

import os
import pathlib
import subprocess
import sys

# Every step with the fewest updates, questions and compiled programs.
SHORTEST = (
  '--config.evaluate.examples=4',
  "--config.evaluate.tasks=('detection', 'vqa')",
  '--config.mix.coefficients=(0.0, 0.5, 1.0)',
  '--config.real.steps=2',
  '--config.synthetic.steps=2',
  '--config.stage2.steps=2',
  *(
    f'--config.{stage}.{setting}'
    for stage in ('real', 'synthetic', 'stage2')
    for setting in ('eval_every=8', 'checkpoint.every=8', 'model.scan_unroll=1')
  ),
)


def one_device() -> dict[str, str]:
  """The environment of a user's machine: without fake devices, but compiled without much effort."""
  environment = {name: value for name, value in os.environ.items() if name != 'XLA_FLAGS'}
  return environment | {'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}


def run_recipe(workdir: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
  """Runs `python -m sphinx_jax.recipe` to its end, in any directory."""
  command = [sys.executable, '-m', 'sphinx_jax.recipe', '--config=mini:quick', *SHORTEST, *flags]
  return subprocess.run(
    [*command, f'--workdir={workdir}'],
    env=one_device(),
    cwd=workdir.parent,
    capture_output=True,
    text=True,
  )
