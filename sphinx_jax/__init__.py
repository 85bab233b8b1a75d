"""SPHINX (arXiv 2311.07575) for JAX: a multimodal LLM from four mixes.

The mixes are in `sphinx_jax.mix`, where reading should start: weights, tasks, visual embeddings and
scales. Packages import only packages on the lines below their own:

    report                      pages and images of finished runs
    evaluation, preparation     benchmarks and their protocols; datasets as files to train on
    generate                    loaded models: logits, decoding, chat
    datasets                    one file per dataset family
    miniworld                   an embedded dataset of drawn scenes
    tasks                       one file per task family: instructions, answers, metric
    checkpoint, planning        storage and foreign formats; memory and FLOP of a run
    training                    state, loss, optimizer, update step
    models, data                images and tokens -> logits; records -> batches
    parallel, mix               mesh and sharding; the four mixes
    core                        config, errors, files, trees, the batch contract

Files beside this one with a `main` are entry points, run as `python -m sphinx_jax.NAME` (`recipe`,
`train`, `chat`, `evaluate`, ...). `run.py` holds what they share.

Shape letters in einsums, docstrings and tests:

    B  rows of a batch          N  images a row         V  views an image       L  tokens a view
    T  text positions           S  sequence positions   D  model width          E  encoder width
    H  heads                    K  key/value heads      C  head width           F  FFN width
    Q  query tokens             G  cells per side of a feature map
    Y  pixel rows               X  pixel columns

X always means pixel columns. A dimension of experts is written out as `experts`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sphinx_jax.core import accelerator

if TYPE_CHECKING:
  from sphinx_jax.generate.model import Model

__all__ = ['__version__', 'load']
__version__ = '0.1.0'

accelerator.choose_platform()  # Before anything imports JAX.
if sys.argv[:1] == ['-m'] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
  signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C in the imports of an entry point: no trace.


def load(
  directory: str | os.PathLike,
  dtype: str | None = None,
  half_round: bool | None = None,
  clip_activation: str | None = None,
  mesh: str | None = None,
  changes: Mapping[str, Any] | None = None,
  ids: str | None = None,
  adapter: str | os.PathLike | None = None,
  weights: str | None = None,
) -> Model:
  """Loads a model from a checkpoint or a released folder (official SPHINX, LLaMA, Idefics2).

  It also turns on JAX's cache of compiled programs in this process, in ~/.cache/sphinx_jax, unless
  it has a folder already or is off (JAX_ENABLE_COMPILATION_CACHE=0).

      model = sphinx_jax.load('DIR')
      logits = model.logits(tokens, images)
      text = model.chat([('What is this?', None)], image)

  Args:
    directory: a run's directory, one step's, or a folder of released weights or its name in the
      local hub cache, with a LoRA adapter if it is BASE+ADAPTER.
    dtype: compute dtype, 'float32', 'bfloat16' or 'float16'. None: that of the checkpoint's config,
      or bfloat16 if a released folder stores its weights in 16 bits; on a CPU float32, in which its
      products are faster, while weights in 16 bits stay so in memory.
    half_round: whether resized images are rounded to half precision, as in the official code.
      None: as in the checkpoint's config; True for official folders.
    clip_activation: 'gelu', which the official inference uses, or 'quick_gelu', with which OpenAI
      trained CLIP. None: that of the checkpoint's config or of the folder.
    mesh: name of a mesh over all devices of this process: 'serving', 'fsdp',
      'fsdp_tensor' or 'experts'. None:
      the model is on the first device.
    changes: settings of the model in place of its own, for instance {'perceiver.eps': 1e-5}; see
      docs/idefics2.md.
    ids: 'v4' or 'v5': the major release of transformers whose token ids texts become. None: those
      of the checkpoint; 'v4' for released folders.
    adapter: a run that trained adapters of these weights; or the folder of a LoRA adapter (PEFT),
      which is merged into the weights of a folder of HF transformers, and into those of a
      checkpoint if it has a part that no layer computes unmerged (DoRA). None: the directory
      alone, which may be such a run.
    weights: 'int8', 'int4' or 'nf4': matrices are stored so; the LM head, embeddings and trained
      parameters keep their dtype. 'int8_dynamic': products round their other side to 8 bits too,
      which a GPU or TPU with products of 8-bit numbers computes faster and less exactly. None: as
      the directory has them, and under an adapter as it was trained.

  Returns:
    `sphinx_jax.generate.model.Model`.

  Raises:
    SphinxError: the directory has no known format, its files do not fit together, or an option is
      unknown.
  """
  from sphinx_jax.core import compile_cache
  from sphinx_jax.generate import load as loading  # Keeps `import sphinx_jax` light.

  compile_cache.enable()
  return loading.load_model(
    directory, dtype, half_round, clip_activation, mesh, changes, ids, adapter, weights
  )
