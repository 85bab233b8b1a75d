"""Memory of full tuning, LoRA and QLoRA on one device, as libtpu compiles their update.

    python -m benchmarks.memory
    python -m benchmarks.memory --only=qlora --models=7b --topologies=v5e:1x1

Models are SPHINX 7B and 13B and Idefics2-8B with the shipped row shapes and frozen encoders. The
update of one row is compiled for each accelerator (minutes each; no accelerator is needed). More
rows at a time are estimated from it (sphinx_jax/planning/largest.py). 'this' is the device of this
machine. A device may be given by its memory alone (--topologies=24GiB); then all of it is an
estimate that leaves a tenth free.
"""

import argparse
from typing import Any

import jax
from ml_collections import ConfigDict

from sphinx_jax import run
from sphinx_jax.configs import forkme, idefics2, stage2
from sphinx_jax.core import accelerator
from sphinx_jax.planning import largest, slices
from sphinx_jax.planning.plan import Planner

MODELS = {
  '7b': lambda: stage2.get_config('7b,224'),
  '7b,1k': lambda: stage2.get_config('7b,1k'),
  '13b': lambda: stage2.get_config('13b,224'),
  '13b,1k': lambda: stage2.get_config('13b,1k'),
  'idefics2': lambda: idefics2.get_config('whole'),
}
METHODS = ('full', 'lora', 'qlora')
GIB = 2**30


def config_of(model: str, method: str, remat: str) -> ConfigDict:
  """The config of a run of one row on one device."""
  config = MODELS[model]().copy_and_resolve_references()
  config.unlock()
  config.name = f'{model} {method}'
  config.mesh = dict(data=1, fsdp=1, tensor=1)
  config.batch.size, config.optimizer.accumulate = 1, 1
  config.model.remat = remat
  if method != 'full':
    config.update(forkme.adapters(method))
    config.init_from = 'BASE'
  return config.lock()


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  parser.add_argument('--models', default=';'.join(MODELS), help='separated by ; (%(default)s)')
  parser.add_argument('--only', default=','.join(METHODS), help='methods (%(default)s)')
  parser.add_argument('--topologies', default='v5e:1x1,v6e:1x1,this', help='%(default)s')
  parser.add_argument('--remat', default='full', help='model.remat (%(default)s)')
  parser.add_argument('--estimate', action='store_true', help='without compiling')
  options = parser.parse_args()
  jax.config.update('jax_compilation_cache_dir', None)  # It has no programs of absent devices.
  accelerator.quiet_libtpu()
  planner = Planner(run.Program)
  print('| model | method | device | at rest GiB | temporaries GiB | left of HBM | rows that fit |')
  print('|---|---|---|---|---|---|---|')
  for model in options.models.split(';'):
    for method in options.only.split(','):
      for topology in options.topologies.split(','):
        print(line(planner, model, method, topology, options), flush=True)


def line(planner: Planner, model: str, method: str, topology: str, options: Any) -> str:
  """One line of the table."""
  by_memory = topology[0].isdigit()
  if topology == 'this':
    device = slices.this_device()
  else:
    device = slices.of_memory(topology) if by_memory else slices.find(topology)
  config = config_of(model, method, options.remat)
  plan = planner.plan(config, device, not (by_memory or options.estimate), details=False)
  temporaries = plan.compiled.temporaries if plan.compiled else sum(plan.activations.values())
  return (
    f'| {model} | {method} | {topology} | {(plan.total - temporaries) / GIB:.2f} '
    f'| {temporaries / GIB:.2f} | {plan.headroom / GIB:.2f} | {largest.rows(plan, planner)} |'
  )


if __name__ == '__main__':
  main()
