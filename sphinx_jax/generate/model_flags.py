"""Flags of the entry points that load a model and let it answer."""

from absl import flags

from sphinx_jax.core import cli
from sphinx_jax.parallel import mesh as meshes

flags.disclaim_key_flags()  # So that --help of an entry point lists them among its own flags.


def define_model() -> None:
  """Defines --checkpoint, --adapter and --mesh, the arguments of `load.load_model`."""
  cli.define_path(
    'checkpoint',
    None,
    'Directory of a run or of one of its checkpoints, or a folder of released weights or its name '
    'in the local hub cache.',
    required=True,
  )
  cli.define_path('adapter', None, 'LoRA adapter of the model: of a run, or a folder of PEFT.')
  flags.DEFINE_enum(
    'mesh',
    None,
    list(meshes.PRESETS),
    'Mesh over the devices of a process. Without it, the model is on the first of them.',
  )


def define_sampling() -> None:
  """Defines --temperature, --top_p, --max_new_tokens and --seed, arguments of `Model.complete`."""
  flags.DEFINE_float(
    'temperature', 0.0, '0 takes the likeliest token; larger is more random.', lower_bound=0.0
  )
  flags.DEFINE_float(
    'top_p', 1.0, 'Share of the probability sampled from.', lower_bound=1e-6, upper_bound=1.0
  )
  flags.DEFINE_integer('max_new_tokens', 512, 'Most tokens of an answer.', lower_bound=1)
  cli.define_seed('Random seed for sampling.')
