"""Times decoding here and in Hugging Face transformers, in turns, beside the memory bandwidth.

    python -m benchmarks.decode
    python -m benchmarks.decode --width=2048 --layers=22 --dtypes=bfloat16 --batches=1
    python -m benchmarks.decode --official=DIR
    python -m benchmarks.decode --weights=int8,int4 --dtypes=bfloat16

A language model of LLaMA's form with random weights continues prompts of random tokens greedily.
All sides get the same weights and the same ids; the number of answers equal to ours is printed. A
call is timed with one new token (prefill) and with many; their difference is the time of the other
tokens. The bound is the time to read all weights once at the bandwidth that a sum over memory
reaches before the sides start. The official code is measured if its sources are given
(benchmarks/official.py, which has the installation). With --weights the sides are our own model as
it is and in few bits, with the bytes of the matrices that are quantized and of all weights.
"""

import argparse
import functools
import os
import statistics
import tempfile
import time
from typing import Any

import numpy as np

from benchmarks import llama_folder, official, sides


def prompts(options: dict, batch: int) -> np.ndarray:
  """Token ids int64[batch, prompt]."""
  rng = np.random.default_rng(batch)
  return rng.integers(3, options['vocab'], (batch, options['prompt']))


def make_torch(options: dict, folder: str, dtype: str, batch: int) -> tuple:
  import torch
  from transformers import LlamaForCausalLM

  torch.set_num_threads(sides.THREADS)
  model = LlamaForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
  ids = torch.from_numpy(prompts(options, batch))

  def generate(tokens: int) -> list[str]:
    with torch.inference_mode():
      out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
      )
    return [' '.join(map(str, row)) for row in out[:, ids.shape[1] :].tolist()]

  return generate, generate(options['tokens'])


def make_official(options: dict, folder: str, dtype: str, batch: int) -> tuple:
  import torch

  torch.set_num_threads(sides.THREADS)
  slots = options['prompt'] + options['tokens']
  model = official.load(options['official'], folder, dtype, slots)
  ids = torch.from_numpy(prompts(options, batch))

  def generate(tokens: int) -> list[str]:
    with torch.inference_mode():
      out = official.greedy(model.llma, ids, tokens)
    return [' '.join(map(str, row)) for row in out.tolist()]

  return generate, generate(options['tokens'])


class Numbers:
  """In place of a tokenizer: the text of a token is its number."""

  specials: dict[str, int] = {}
  eos = -1

  def __init__(self, vocab_size: int) -> None:
    self.vocab_size = vocab_size

  def decode(self, ids: list[int]) -> str:
    return ' '.join(map(str, ids))


def continuing(config: Any, params: dict) -> Any:
  """A `generate.model.Model` of these weights whose answers are numbers and have no early end."""
  from sphinx_jax.data import dialog
  from sphinx_jax.generate.model import Model

  template = dialog.Template(style='idefics2_base')  # Has no text that ends an answer.
  return Model(config, params, Numbers(config.llm.vocab), template)


def make_jax(options: dict, folder: str, dtype: str, batch: int) -> tuple:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import sphinx_jax

  loaded = sphinx_jax.load(folder)  # Stored in the dtype of this case.
  return continue_with(loaded, options, batch)


def continue_with(loaded: Any, options: dict, batch: int) -> tuple:
  """What a maker returns, of a loaded model."""
  model = continuing(loaded.config, loaded.params)
  ids = prompts(options, batch).tolist()
  generate = lambda tokens: model.complete(ids, max_new_tokens=tokens)
  return generate, generate(options['tokens'])


def make_form(form: str | None, options: dict, folder: str, dtype: str, batch: int) -> tuple:
  """Our side in few bits, or as it is; the result is (answers, bytes of kernels, of all)."""
  os.environ['JAX_PLATFORMS'] = 'cpu'
  import sphinx_jax
  from sphinx_jax.core import trees
  from sphinx_jax.models import adapters, families, quantized, stored

  loaded = sphinx_jax.load(folder, weights=form)
  flat = trees.flatten(loaded.params)
  names = (adapters.KERNEL, quantized.SCALE, *quantized.FORMS)
  layers = stored.matrices(families.logical_axes(loaded.config), 'int8')
  kernels = [
    flat[path] for layer in layers for name in names if (path := f'{layer}/{name}') in flat
  ]
  generate, answers = continue_with(loaded, options, batch)
  return generate, (answers, sum(leaf.nbytes for leaf in kernels), trees.nbytes(loaded.params))


def bandwidth(gigabytes: float = 1.0) -> float:
  """Bytes a second at which all cores together sum an array that no cache holds."""
  import torch

  torch.set_num_threads(sides.THREADS)
  array = torch.ones(int(gigabytes * 2**28))
  seconds = []
  for _ in range(5):
    began = time.perf_counter()
    array.sum()
    seconds.append(time.perf_counter() - began)
  return 4 * array.numel() / min(seconds)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
  numbers = dict(width=1024, layers=16, vocab=32000, prompt=300, tokens=33, repeats=5)
  for name, default in numbers.items():
    parser.add_argument(f'--{name}', type=int, default=default, help='%(default)s')
  parser.add_argument('--dtypes', default='float32,bfloat16', help='at rest (%(default)s)')
  parser.add_argument('--batches', default='1,8', help='%(default)s')
  parser.add_argument('--weights', default='', help='forms of few bits, such as int8,int4')
  official.add_flag(parser)
  options = vars(parser.parse_args())
  print(
    f'{"at rest":9}{"rows":>5}{"":>14}{"ms to 1st":>11}{"ms a token":>12}{"of bound":>10}'
    f'{"peak GiB":>10}'
  )
  for dtype in options['dtypes'].split(','):
    for batch in map(int, options['batches'].split(',')):
      with tempfile.TemporaryDirectory() as folder:
        # Larger deviations than usual, so that the best token is clear.
        parameters = llama_folder.write(folder, options, dtype, initializer_range=0.05)
        if options['official']:
          official.write(folder)
        read = parameters - options['vocab'] * options['width']  # Of the embedding, a row is read.
        step_bytes = read * {'float32': 4, 'bfloat16': 2}[dtype]
        if options['weights']:
          compare_forms(options, folder, dtype, batch)
        else:
          compare(options, folder, dtype, batch, step_bytes / bandwidth())


def compare_forms(options: dict, folder: str, dtype: str, batch: int) -> None:
  """Measures our side as it is and in every form of --weights, in turns."""
  forms = options['weights'].split(',')
  makers = [functools.partial(make_form, form) for form in (None, *forms)]
  sizes = 1, options['tokens']
  measured = sides.measure(makers, (options, folder, dtype, batch), options['repeats'], sizes)
  times = []
  for name, side in zip((dtype, *forms), measured):
    begin, total = map(statistics.median, side.seconds)
    times.append((begin, (total - begin) / (sizes[1] - 1)))
    first, token = times[-1]
    answers, kernels, everything = side.result
    full_answers, full_kernels, full = measured[0].result
    same = sum(a == b for a, b in zip(answers, full_answers))
    print(
      f'{name:9}{batch:5}{"":14}{1e3 * first:11.0f}{1e3 * token:12.1f}{"":10}{side.gib:10.1f}\n'
      f'{"":14}prefill {times[0][0] / first:.2f} and a token {times[0][1] / token:.2f} times '
      f'faster than {dtype}; kernels {kernels / full_kernels:.3f} of its bytes, all '
      f'{everything / full:.3f}; {same} of {batch} answers equal, '
      f'load average {os.getloadavg()[0]:.1f}',
      flush=True,
    )


def compare(options: dict, folder: str, dtype: str, batch: int, bound: float) -> None:
  """Measures one line of every side; `bound` is in seconds a token."""
  makers = {'sphinx_jax': make_jax, 'transformers': make_torch}
  if options['official']:
    makers['official'] = make_official
  sizes = 1, options['tokens']
  arguments = options, folder, dtype, batch
  measured = sides.measure((*makers.values(),), arguments, options['repeats'], sizes)
  table = {}
  for name, side in zip(makers, measured):
    begin, total = map(statistics.median, side.seconds)
    token = (total - begin) / (sizes[1] - 1)
    table[name] = begin, token
    print(
      f'{dtype:9}{batch:5}  {name:12}{1e3 * begin:11.0f}{1e3 * token:12.1f}{bound / token:10.0%}'
      f'{side.gib:10.1f}',
      flush=True,
    )
  ours, *others = makers
  for name, side in zip(others, measured[1:]):
    first, token = (theirs / own for own, theirs in zip(table[ours], table[name]))
    same = sum(a == b for a, b in zip(measured[0].result, side.result))
    print(
      f'{"times faster than " + name:30}{first:9.2f}{token:12.2f}    '
      f'{same} of {batch} answers equal, load average {os.getloadavg()[0]:.1f}',
      flush=True,
    )


if __name__ == '__main__':
  main()
