"""Names of tensors that show a wrapper around the model, an adapter, or quantized weights."""

import re
from collections.abc import Callable, Iterable, Mapping

from sphinx_jax.checkpoint.foreign import files
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors

# Of torch.compile, FSDP, activation checkpointing and DeepSpeed, which wrap any module in a model.
_INSIDE = re.compile(
  r'(^|\.)(?:(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.)+'
)
# Of DDP, PEFT and trainers, which wrap the whole model.
_OUTSIDE = ('module.', 'base_model.model.', 'model.')
_ADAPTER = re.compile(
  r'(^|\.)(lora_|ia3_|hada_w|lokr_w|oft_|boft_|vera_lambda|prompt_embeddings|base_layer\.'
  r'|modules_to_save\.)'
)
_QUANTIZED = re.compile(
  r'(^|\.)(qweight|qzeros|scales|g_idx|SCB|weight_format|weight_scale(_inv|_2)?|input_scale'
  r'|weight_(packed|shape|zero_point)|(nested_)?absmax|(nested_)?quant_map|quant_state|[kv]_scale'
  r'|_scale|_data|q_(weight|scale|groups|perm|invperm)|W_q)(\.|$)'
)


def unwrap(
  tensors: Mapping[str, Tensor], is_known: Callable[[Iterable[str]], bool]
) -> dict[str, Tensor]:
  """Removes what wrappers put into the names of a model, in any order and number.

  Args:
    tensors: name -> tensor.
    is_known: whether names are those of a format without wrappers.

  Returns:
    The tensors under their own names; the same names if no format has them.
  """
  names = [_INSIDE.sub(r'\1', name) for name in tensors]
  while not is_known(names):
    prefix = next((p for p in _OUTSIDE if all(name.startswith(p) for name in names)), None)
    if prefix is None or not names:
      return dict(tensors)
    names = [name.removeprefix(prefix) for name in names]
  if len(set(names)) < len(names):  # A model and its wrapper are in one file.
    return dict(tensors)
  return dict(zip(names, tensors.values()))


def check_whole(names: Iterable[str], who: str) -> None:
  """Refuses the tensors of an adapter.

  Raises:
    SphinxError: a name is that of an adapter.
  """
  name = next(filter(_ADAPTER.search, names), None)
  if name is not None:
    raise adapter(who, f'a LoRA adapter or another one ({name})')


def adapter(who: str, got: str) -> errors.SphinxError:
  """Returns the error for an adapter."""
  return errors.make(
    who,
    got,
    'whole weights',
    'name its base, too (BASE+ADAPTER), if it is LoRA; or merge it into its base first (PEFT: '
    'merge_and_unload, then save_pretrained)',
  )


def check_not_quantized(names: Iterable[str], who: str) -> None:
  """Refuses the scales and packed numbers of quantized weights.

  Raises:
    SphinxError: a name is that of such a tensor.
  """
  found = [name for name in names if _QUANTIZED.search(name)]
  if found:
    raise quantized(who, files.first_names(found))


def quantized(who: str, what: str) -> errors.SphinxError:
  """Returns the error for quantized weights."""
  return errors.make(who, f'quantized weights ({what})', 'floating-point weights', files.DEQUANTIZE)
