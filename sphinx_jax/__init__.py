"""SPHINX (arXiv 2311.07575) for JAX: one model from a joint mix of weights, tasks, visual embeddings and scales.

Rooms, from the bottom: `core`, `mix` (the four mixes: start reading there), `parallel`, `data` and `models`,
`checkpoint` and `training`, `generate`, `evaluate`, `report` and `planning`; the modules beside this file are the doors
(`python -m sphinx_jax.recipe`, `train`, `chat`, `peek`, ...). A room imports only the rooms before it.

One legend of shape letters holds for the whole package, in einsums, docstrings and tests:

    B  rows of a batch          N  images a row         V  views an image       L  tokens a view
    T  text positions           S  sequence positions   D  model width          E  encoder width
    H  heads                    K  key/value heads      C  head width           F  feed-forward width
    Y  pixel rows               X  pixel columns
"""

from sphinx_jax.core import accelerator

__version__ = '0.1.0'
accelerator.choose_platform()  # Before anything imports JAX.


def load(directory, dtype=None, half_round=None, clip_activation=None, mesh=None):
  """A model from one of our checkpoints or from a folder as others release it (official SPHINX, LLaMA).

      model = sphinx_jax.load('DIR')
      logits = model.logits(tokens, images)
      text = model.chat([('What is this?', None)], image)

  Args:
    directory: a run's directory, one step's, or a released folder.
    dtype: of computation, 'float32' or 'bfloat16'; None: as the checkpoint says, or for others' folders as they store.
    half_round: resized pictures are rounded to half precision as in the official code (True in its own folders).
    clip_activation: 'gelu' or 'quick_gelu': the official inference builds the first, OpenAI's weights were trained with
      the second (None: as the checkpoint or folder says).
    mesh: name of a layout over all devices of this process ('serving', 'fsdp', 'fsdp_tensor'); None: on the first device.

  Returns:
    `sphinx_jax.generate.model.Model`.

  Raises:
    SphinxError: nothing that is recognised, or files that do not fit together.
  """
  from sphinx_jax.generate import load as loading  # Importing the package alone stays light.

  return loading.load_model(directory, dtype, half_round, clip_activation, mesh)
