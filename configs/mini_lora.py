"""The mini recipe with adapters (LoRA) in its last stage, in place of all of the language model.

    python -m sphinx_jax.recipe --config=mini_lora --workdir=workdir/mini_lora

Stage 2 trains adapters of rank 16 and the projections; everything else is frozen. The other steps
are those of configs/mini.py, whose words are arguments here, too (`mini_lora:quick`), so that the
scores compare what the two ways of training reach (docs/results.md).
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import forkme, mini


def get_config(arg: str = '') -> ConfigDict:
  """Returns the recipe's config; `arg` as in configs/mini.py."""
  config = ConfigDict(mini.get_config(arg).to_dict())
  stage = config.stage2
  stage.lora = forkme.adapters('lora')['lora']
  stage.lora.target = 'llm/.*'
  stage.lora.dropout = 0.0  # Every example is seen about once.
  stage.frozen_dtype = ''
  stage.optimizer.lr = 4e-3  # At 1e-2 the loss rises again after 100 updates.
  stage.trainable = (('.*/lora_[ab]|.*_proj/.*|(start|end)_img', 'train'), ('.*', 'frozen'))
  return config.lock()
