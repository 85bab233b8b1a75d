"""Config files of other libraries: typed fields, and what every field means to the model.

A config describes a computation. A field that no table below knows may change it, so a model file
lists all fields of its libraries' configs (`Form.configs`), and anything else is refused.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sphinx_jax.core import errors


@dataclasses.dataclass(frozen=True)
class Fields:
  """What the fields of a library's config mean to the model. Any other field is refused.

  Attributes:
    used: fields that `Form.settings` reads and checks.
    neutral: reason -> fields that change nothing of what the model computes.
    only: field -> the values that the model computes. A list stands for all lists of its items, a
      tuple for the list of these.
    sizes: field -> (settings -> the value that it must have).
    sections: field -> the fields of the object under it.
    marks: fields of which every config of the library has one.
  """

  used: tuple[str, ...] = ()
  neutral: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
  only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
  sizes: Mapping[str, Callable[[Mapping[str, Any]], Any]] = dataclasses.field(default_factory=dict)
  sections: Mapping[str, 'Fields'] = dataclasses.field(default_factory=dict)
  marks: tuple[str, ...] = ()

  def problems(self, config: Mapping[str, Any], prefix: str = '') -> list[str]:
    """Describes every field of a config with which the model would compute something else."""
    known = {*self.used, *self.sizes, *(name for names in self.neutral.values() for name in names)}
    lines = []
    if self.marks and all(config.get(mark) is None for mark in self.marks):
      lines.append(f'no {prefix}{" or ".join(self.marks)}')
    # The name of the architecture comes first in an error, which may be cut.
    names = sorted(config, key=lambda name: name not in ('model_type', 'architectures'))
    for name in names:
      value = config[name]
      described = f'{prefix}{name} {value!r}'[:120]
      if name in self.sections:
        if isinstance(value, dict):
          lines += self.sections[name].problems(value, f'{prefix}{name}.')
        elif value is not None:
          lines.append(f'{described} (no JSON object)')
      elif name in self.only:
        allowed = self.only[name]
        if not any(_is_allowed(value, item) for item in allowed):
          computed = ', '.join(repr(item) for item in allowed if item is not None) or 'none'
          lines.append(f'{described} (computed: {computed})')
      elif name not in known:
        lines.append(f'{described} (an unknown field)')
    return lines

  def wrong_sizes(
    self, config: Mapping[str, Any], settings: Mapping[str, Any], prefix: str = ''
  ) -> list[str]:
    """Describes every size that differs from the settings, most of which tensors determine."""
    lines = []
    for name, value in config.items():
      if name in self.sections and value is not None:
        lines += self.sections[name].wrong_sizes(value, settings, f'{prefix}{name}.')
      elif name in self.sizes and value is not None:
        computed = self.sizes[name](settings)
        if isinstance(value, bool) or value != computed:
          lines.append(f'{prefix}{name} {value!r} (computed: {computed})')
    return lines


def _is_allowed(value: Any, allowed: Any) -> bool:
  """Whether a value is the allowed one and no bool in place of a number; see `Fields.only`."""
  if isinstance(allowed, tuple):
    return value == list(allowed)
  if isinstance(allowed, list):
    return isinstance(value, list) and all(item in allowed for item in value)
  return value == allowed and isinstance(value, bool) == isinstance(allowed, bool)


# Fields that any config of HF transformers may have, also older ones, which list all defaults.
_NEUTRAL = {
  'names and versions': (
    '_name_or_path name_or_path _commit_hash transformers_version transformers.js_config '
    'tokenizer_class prefix dtype torch_dtype unsloth_version unsloth_fixed model_name'
  ),
  'how transformers computes, not what': (
    'use_cache output_attentions output_hidden_states return_dict torchscript use_bfloat16 '
    'tf_legacy_loss chunk_size_feed_forward gradient_checkpointing attn_implementation '
    '_attn_implementation _attn_implementation_autoset _attn_implementation_internal '
    '_flash_attn_2_enabled use_flash_attention'
  ),
  'training only': (
    'initializer_range initializer_factor attention_dropout hidden_dropout hidden_dropout_prob '
    'attention_probs_dropout_prob classifier_dropout dropout drop_path_rate layerdrop'
  ),
  'choice of the next token, which the caller makes here': (
    'max_length max_new_tokens min_length do_sample early_stopping num_beams num_beam_groups '
    'diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty '
    'no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences '
    'output_scores return_dict_in_generate forced_bos_token_id forced_eos_token_id '
    'remove_invalid_values exponential_decay_length_penalty suppress_tokens begin_suppress_tokens'
  ),
  'ids, which are those of tokenizer.model': (
    'bos_token_id eos_token_id pad_token_id sep_token_id unk_token_id decoder_start_token_id '
    'model_max_length tokenizer_model_max_length tokenizer_padding_side'
  ),
  'classifiers on top': (
    'id2label label2id num_labels problem_type finetuning_task task_specific_params'
  ),
}
_ONLY = {
  'quantization_config': (None,),
  'compression_config': (None,),
  'auto_map': (None, {}),  # Code beside the weights, which may compute anything.
  'pruned_heads': (None, {}),
  'add_cross_attention': (None, False),
  'cross_attention_hidden_size': (None,),
  'is_decoder': (None, False),
  'is_encoder_decoder': (None, False),
  'tie_encoder_decoder': (None, False),
}


def transformers_fields(
  model_types: Sequence[str],
  architectures: Sequence[str] = (),
  *,
  used: tuple[str, ...] = (),
  neutral: Mapping[str, tuple[str, ...]] | None = None,
  only: Mapping[str, tuple[Any, ...]] | None = None,
  sizes: Mapping[str, Callable[[Mapping[str, Any]], Any]] | None = None,
  sections: Mapping[str, Fields] | None = None,
) -> Fields:
  """Fields of a config of HF transformers, with those that all its configs share.

  Args:
    model_types: values of `model_type` that the model computes.
    architectures: class names that the model computes. A config must have one of them or a
      model_type; a section of another config, which has no class, need not.
    used, neutral, only, sizes, sections: as in `Fields`.
  """
  reasons = {reason: tuple(names.split()) for reason, names in _NEUTRAL.items()}
  for reason, names in (neutral or {}).items():
    reasons[reason] = (*reasons.get(reason, ()), *names)
  return Fields(
    used,
    reasons,
    {
      'model_type': (*model_types, None),
      'architectures': (None, [*architectures]),
      **_ONLY,
      **(only or {}),
    },
    sizes or {},
    sections or {},
    ('model_type', 'architectures') if architectures else (),
  )


def open_clip_fields(vision: Fields) -> Fields:
  """Fields of open_clip_config.json, whose vision half has these."""
  return Fields(
    neutral={'how images are prepared, which SPHINX decides': ('preprocess_cfg',)},
    sections={
      'model_cfg': Fields(
        neutral={
          'the text half and the loss': (
            'embed_dim',
            'text_cfg',
            'multimodal_cfg',
            'custom_text',
            'init_logit_scale',
            'init_logit_bias',
            'nonscalar_logit_scale',
          ),
          'how open_clip computes, not what': ('cast_dtype', 'output_dict'),
        },
        only={'quick_gelu': (None, False, True)},
        sections={'vision_cfg': vision},
      )
    },
    marks=('model_cfg',),
  )


def field(config: Mapping[str, Any], name: str) -> Any:
  """A field that a foreign config must have.

  Raises:
    SphinxError: the field or the whole config is missing.
  """
  if config.get(name) is None:
    raise errors.make(
      'config.json',
      f'no {name!r}' if config else 'no such file',
      f'{name!r}, which no tensor determines',
      'take the config.json (or params.json) that belongs to the weights',
    )
  return config[name]


def size(config: Mapping[str, Any], name: str, default: int | None = None) -> int:
  """A positive integer of a foreign config.

  Args:
    config: the config.
    name: the field.
    default: value of a missing field; None: the config must have it.

  Raises:
    SphinxError: the field is missing, or is not a positive integer.
  """
  if default is not None and config.get(name) is None:
    return default
  value = field(config, name)
  if type(value) is not int or value < 1:
    raise wrong_value(name, value, 'a whole number above 0')
  return value


def number(
  config: Mapping[str, Any], name: str, default: float | None = None, zero: bool = False
) -> float | None:
  """A positive number of a foreign config, or 0 if `zero`; `default` if it has none.

  Raises:
    SphinxError: the field is not a positive number.
  """
  value = config.get(name)
  if value is None:
    return default
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  if not is_number or not 0 <= value < math.inf or not (value or zero):
    raise wrong_value(name, value, 'a number from 0 on' if zero else 'a number above 0')
  return value


def divisor(config: Mapping[str, Any], name: str, number: int) -> int:
  """A positive integer of a foreign config that divides `number`, which is its default.

  Raises:
    SphinxError: it is not a positive integer, or does not divide the number.
  """
  value = size(config, name, number)
  if number % value:
    raise wrong_value(name, value, f'a divisor of {number}')
  return value


def flag(config: Mapping[str, Any], name: str) -> bool:
  """A boolean of a foreign config; False if it has none.

  Raises:
    SphinxError: the field is no boolean.
  """
  value = config.get(name)
  if not isinstance(value, bool | None):
    raise wrong_value(name, value, 'true or false')
  return bool(value)


def section(config: Mapping[str, Any], name: str) -> dict[str, Any]:
  """An object of a foreign config; {} if it has none.

  Raises:
    SphinxError: the field is no object.
  """
  value = config.get(name)
  if value is not None and not isinstance(value, dict):
    raise wrong_value(name, value, 'a JSON object')
  return value or {}


def wrong_value(
  name: str, value: Any, expected: str, file: str = 'config.json'
) -> errors.SphinxError:
  """Returns the error for a field with a value that the model does not have."""
  alternative = ' (or params.json)' if file == 'config.json' else ''
  return errors.make(
    file,
    f'{name} {value!r}'[:200],
    expected,
    f'take the {file}{alternative} that belongs to the weights',
  )
