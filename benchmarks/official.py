"""The language model of the official PyTorch code (LLaMA2-Accessory), as a side of a benchmark.

    git clone https://github.com/Alpha-VLLM/LLaMA2-Accessory DIR
    pip install --no-deps fairscale==0.4.13
    python -m benchmarks.decode --official=DIR

The official `MetaModel` with `llama` inside runs on a CPU with its own loader, loss and cache of
keys and values. Three things are not official. The tokenizer is replaced by the size of its
vocabulary. open_clip, which `llama` imports for images only, is an empty module. `greedy` is the
loop of `MetaModel.generate`, which needs CUDA. Without apex and flash-attn, the official code takes
its own RMSNorm and PyTorch's scaled_dot_product_attention.
"""

import argparse
import contextlib
import importlib
import io
import json
import os
import pathlib
import sys
import types
import warnings
from typing import Any

from sphinx_jax.core import errors

FILES = ('__init__.py', 'model/LLM/llama.py', 'model/components.py', 'model/meta.py')
_URL = 'https://github.com/Alpha-VLLM/LLaMA2-Accessory'
_FAIRSCALE = 'pip install --no-deps fairscale==0.4.13'


def add_flag(parser: argparse.ArgumentParser) -> None:
  """Adds --official=PATH, whose value is checked by `checkout`."""
  parser.add_argument(
    '--official',
    type=_argument,
    metavar='PATH',
    help=f'measure the official code, too: a checkout of {_URL}, or its folder accessory',
  )


def _argument(path: str) -> str:
  try:
    return checkout(path)
  except errors.SphinxError as error:
    raise argparse.ArgumentTypeError(str(error)) from None


def checkout(path: str) -> str:
  """The folder that holds the official package `accessory`.

  Args:
    path: this folder, or the package itself.

  Raises:
    SphinxError: a file is missing, or the package cannot be imported.
  """
  package = pathlib.Path(os.path.abspath(os.path.expanduser(path)))
  if package.name != 'accessory':
    package /= 'accessory'
  missing = [name for name in FILES if not (package / name).is_file()]
  if missing:
    raise errors.make(
      f"sources '{path}'",
      f'no file {package / missing[0]}',
      'a checkout of LLaMA2-Accessory, or its folder accessory',
      f'git clone {_URL}',
    )
  try:
    _meta(str(package.parent))
  except ImportError as error:
    raise errors.make(
      f"sources '{path}'",
      f'{error}',
      'all modules that the official language model imports',
      f'install the missing one (fairscale: {_FAIRSCALE}), or check out all of accessory',
    ) from None
  return str(package.parent)


def _meta(root: str) -> types.ModuleType:
  """The official module with `MetaModel`."""
  if root not in sys.path:
    sys.path.append(root)  # At the end: only `accessory` is wanted from there.
  sys.modules.setdefault('open_clip', types.ModuleType('open_clip'))
  with warnings.catch_warnings(action='ignore'):  # About apex and flash-attn.
    importlib.import_module('accessory.model.LLM.llama')
    return importlib.import_module('accessory.model.meta')


def write(folder: str) -> None:
  """Writes the weights of a LLaMA of transformers as the official loader reads them.

  Args:
    folder: of transformers. The files are in its new folder 'official'.
  """
  os.environ['JAX_PLATFORMS'] = 'cpu'
  from sphinx_jax.checkpoint.foreign import assemble, export, pth_writer, shards, sources
  from sphinx_jax.models import variants

  assembly = assemble.assemble([sources.open_source(folder)])
  table, arrays = variants.weights(assembly.config), assemble.arrays(assembly)
  tensors = {
    shards.PREFIX + key: tensor for key, tensor in export.foreign_tensors(table, arrays).items()
  }
  output = pathlib.Path(folder, 'official')
  output.mkdir()
  pth_writer.write_pth(output / 'consolidated.00-of-01.model.pth', tensors)
  (output / 'config.json').write_text(
    json.dumps(variants.LLMS['llama'].config(assembly.config.llm))
  )


def load(root: str, folder: str, dtype: str, max_length: int) -> Any:
  """The official `MetaModel` in evaluation mode.

  Args:
    root: from `checkout`.
    folder: where `write` wrote its weights.
    dtype: of its parameters.
    max_length: positions of its cache.
  """
  import torch

  meta = _meta(root)
  config = pathlib.Path(folder, 'official', 'config.json')
  vocab = json.loads(config.read_text())['vocab_size']
  meta.Tokenizer = lambda model_path: types.SimpleNamespace(n_words=vocab)
  parallel = torch.distributed
  parallel.init_process_group('gloo', store=parallel.HashStore(), rank=0, world_size=1)
  with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action='ignore'):
    meta.fs_init.initialize_model_parallel(1)
    with meta.default_tensor_type(dtype=getattr(torch, dtype), device='cpu'):
      model = meta.MetaModel('llama', str(config), '', max_seq_len=max_length)
    result = meta.tensor_parallel.load_tensor_parallel_model_list(model, str(config.parent))
  # `default_tensor_type` leaves a default device behind, which costs time in every call of torch.
  torch.set_default_device(None)
  if any(result.values()):
    raise RuntimeError(f'weights do not fit the official model: {result}')
  return model.eval()


def greedy(llm: Any, ids: Any, count: int) -> Any:
  """The most probable `count` tokens after each prompt, as `MetaModel.generate` finds them.

  Args:
    llm: the official `Transformer`; it keeps keys and values between calls.
    ids: int64[B,T], a torch tensor.
    count: new tokens of every row; nothing ends a row earlier.

  Returns:
    int64[B,count], a torch tensor.
  """
  prompt = ids.shape[1]
  tokens = ids.new_zeros(ids.shape[0], prompt + count)
  tokens[:, :prompt] = ids
  begin = 0
  for end in range(prompt, prompt + count):
    tokens[:, end] = llm.forward_inference(tokens[:, begin:end], begin).argmax(-1)
    begin = end
  return tokens[:, prompt:]
