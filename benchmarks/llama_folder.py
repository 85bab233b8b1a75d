"""A LLaMA of random weights, as a folder of Hugging Face transformers, for both sides to load."""

from collections.abc import Mapping
from typing import Any


def write(folder: str, options: Mapping[str, Any], dtype: str = 'float32', **settings: Any) -> int:
  """Writes the folder.

  Args:
    folder: where.
    options: `vocab`, `width` and `layers` of the model.
    dtype: of the weights.
    settings: other settings of `LlamaConfig`.

  Returns:
    The number of parameters.
  """
  import torch
  from transformers import LlamaConfig, LlamaForCausalLM

  torch.manual_seed(0)
  config = LlamaConfig(
    vocab_size=options['vocab'],
    hidden_size=options['width'],
    intermediate_size=256 * -(-int(8 * options['width'] / 3) // 256),
    num_hidden_layers=options['layers'],
    num_attention_heads=options['width'] // 64,
    **settings,
  )
  model = LlamaForCausalLM(config).to(getattr(torch, dtype))
  model.save_pretrained(folder)
  return sum(parameter.numel() for parameter in model.parameters())
