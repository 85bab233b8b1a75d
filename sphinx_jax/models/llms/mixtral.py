"""Mixtral: LLaMA with a mixture of experts (models/experts.py) in place of feed-forward layers.

It is the language model of SPHINX-MoE (docs/official_sphinx.md, "Mixture of experts").
"""

from collections.abc import Mapping
from typing import Any

import jax

from sphinx_jax.core import errors
from sphinx_jax.models import experts as mixtures, foreign, foreign_config
from sphinx_jax.models.llms import llama


class Mixtral(llama.Llama):
  """The decoder. Attributes beside those of `llama.Llama`, which has no use for its own F here:

  Attributes:
    hidden: F, hidden features of an expert.
    experts: number of experts.
    experts_per_token: experts that compute a position.
    balance_weight: weight of the balancing loss, see `experts.balance`.
    count_padding: whether padding counts in it.
    grouped: kernel of the experts' products, see models/grouped.py.
  """

  hidden: int = 14336
  experts: int = 8
  experts_per_token: int = 2
  balance_weight: float = 0.1
  count_padding: bool = False
  grouped: str = 'loop'
  rope_theta: float = 1e6
  max_length: int = 4096

  _records = (mixtures.ROUTER, mixtures.CHOICES)

  def setup(self) -> None:
    if self.experts_per_token > self.experts:
      raise errors.make(
        'llm',
        f'experts_per_token {self.experts_per_token} of {self.experts} experts',
        'at most all of them',
        'change one of the two',
      )
    super().setup()

  @property
  def ffn(self) -> int:
    """F."""
    return self.hidden

  def _layer(self) -> tuple[type['Layer'], dict[str, Any]]:
    _, settings = super()._layer()
    return Layer, settings | dict(
      experts=self.experts,
      per_token=self.experts_per_token,
      grouped=self.grouped,
      count_padding=self.count_padding,
    )


class Layer(llama.Layer):
  """One decoder layer."""

  experts: int
  per_token: int
  grouped: str
  count_padding: bool

  def mlp(self, x: jax.Array, segments: jax.Array | None) -> jax.Array:
    """The mixture of experts, [B,T,D] -> [B,T,D]."""
    mixture = mixtures.Experts(
      self.ffn,
      self.experts,
      self.per_token,
      self.scale,
      self.grouped,
      self.count_padding,
      self.dtype,
      name='feed_forward',
    )
    return mixture(x, segments)


SIZES = {
  'mixtral-8x7b': dict(
    vocab=32000,
    width=4096,
    layers=32,
    heads=32,
    kv_heads=8,
    hidden=14336,
    experts=8,
    experts_per_token=2,
    norm_eps=1e-5,
    rope_theta=1e6,
    max_length=32768,
  )
}


def _gate(key: str) -> list[foreign.Weight]:
  return foreign.linear('feed_forward/gate', key, bias=False)


def _stacks(settings: Any, key: str) -> list[foreign.Weight]:
  """The experts as one tensor a matrix, [experts * F, D]; that of w2 is transposed."""
  table, size = [], dict(x=settings['experts'])
  for name, pattern in (
    ('w1', '(x f) d -> x d f'),
    ('w2', '(x f) d -> x f d'),
    ('w3', '(x f) d -> x d f'),
  ):
    table += foreign.tensor(f'feed_forward/{name}/kernel', f'{key}.{name}', pattern, **size)
  return table


def _each(settings: Any, key: str) -> list[foreign.Weight]:
  """The experts as tensors of their own; `key` has '{{}}' for the layer and '%d' for the expert."""
  return [
    foreign.Weight(
      f'feed_forward/{name}/kernel', f'{key % expert}.{name}.weight', 'o i -> i o', part=(expert,)
    )
    for name in ('w1', 'w2', 'w3')
    for expert in range(settings['experts'])
  ]


def _sparse(settings: Any) -> list[foreign.Weight]:
  mixture = [*_gate('feed_forward.gate'), *_stacks(settings, 'feed_forward')]
  return llama.meta_weights(settings, mixture)


def _base(settings: Any) -> list[foreign.Weight]:
  mixture = [*_gate('feed_forward.gate'), *_each(settings, 'feed_forward.experts.%d')]
  return llama.meta_weights(settings, mixture)


def _mistral(settings: Any) -> list[foreign.Weight]:
  mixture = [*_gate('block_sparse_moe.gate'), *_stacks(settings, 'block_sparse_moe')]
  return llama.meta_weights(settings, mixture)


def _huggingface(settings: Any) -> list[foreign.Weight]:
  mixture = [*_gate('block_sparse_moe.gate'), *_each(settings, 'block_sparse_moe.experts.%d')]
  return llama.huggingface_weights(settings, mixture)


def _fused(settings: Any) -> list[foreign.Weight]:
  mixture = _gate('mlp.gate')
  for name, key, pattern in (
    ('w1', 'gate_up_proj[gate]', 'x f d -> x d f'),
    ('w2', 'down_proj', 'x d f -> x f d'),
    ('w3', 'gate_up_proj[up]', 'x f d -> x d f'),
  ):
    mixture += foreign.tensor(f'feed_forward/{name}/kernel', f'mlp.experts.{key}', pattern)
  return llama.huggingface_weights(settings, mixture)


def _without_ffn(settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings of LLaMA without those of its feed-forward width."""
  names = ('multiple_of', 'ffn_multiplier')
  return {name: value for name, value in settings.items() if name not in names}


def _counts(section: Mapping[str, Any], experts_field: str) -> dict[str, int]:
  """The numbers of experts of a config.

  Raises:
    SphinxError: a number is missing, or more experts of a token than there are.
  """
  count = foreign_config.size(section, experts_field)
  per_token = foreign_config.size(section, 'num_experts_per_tok')
  if per_token > count:
    expected = f'at most {experts_field}, {count}'
    raise foreign_config.wrong_value('num_experts_per_tok', per_token, expected)
  return dict(experts=count, experts_per_token=per_token)


def _from_official(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  foreign_config.field(config, 'moe')
  settings = _without_ffn(llama.settings_of_meta(shapes, config, rope_theta=1e6))
  weight = foreign_config.number(config, 'load_balancing_weight', None, zero=True)
  return dict(
    name='mixtral',
    **settings,
    hidden=foreign_config.size(config, 'hidden_dim'),
    **_counts(foreign_config.section(config, 'moe'), 'num_experts'),
    **({} if weight is None else {'balance_weight': weight}),
  )


def _from_base(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  settings = _from_official(shapes, config)
  # The official code multiplies by the weight in the layer and again in the trainer.
  return settings | {'balance_weight': settings.get('balance_weight', Mixtral.balance_weight) ** 2}


def _from_mistral(shapes: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  # Its files have 0 for lengths that they do not limit.
  given = {name: value for name, value in config.items() if name != 'max_seq_len' or value}
  return _from_official(shapes, {'max_seq_len': 32768, **given})


def _to_official(settings: Mapping[str, Any]) -> dict[str, Any]:
  config = llama.config_of_meta(settings)
  for name in ('multiple_of', 'ffn_dim_multiplier'):
    del config[name]
  return config | dict(
    rope_theta=settings.get('rope_theta', Mixtral.rope_theta),
    max_seq_len=settings.get('max_length', Mixtral.max_length),
    hidden_dim=settings['hidden'],
    moe=dict(num_experts=settings['experts'], num_experts_per_tok=settings['experts_per_token']),
    load_balancing_weight=settings.get('balance_weight', Mixtral.balance_weight),
  )


def _from_huggingface(_: foreign.Shapes, config: Mapping[str, Any]) -> dict[str, Any]:
  settings = llama.settings_of_huggingface(config, norm_eps=1e-5, rope_theta=1e6)
  counts = _counts(config, 'num_local_experts')
  # Its balancing loss is larger: that of an even choice is experts_per_token, not 1.
  weight = foreign_config.number(config, 'router_aux_loss_coef', 0.001, zero=True)
  return dict(
    name='mixtral',
    **_without_ffn(settings),
    hidden=foreign_config.size(config, 'intermediate_size'),
    **counts,
    balance_weight=weight * counts['experts_per_token'],
  )


def _to_huggingface(settings: Mapping[str, Any]) -> dict[str, Any]:
  config = llama.config_of_huggingface(dict(settings, multiple_of=settings['hidden']))
  weight = settings.get('balance_weight', Mixtral.balance_weight)
  return config | dict(
    architectures=[_CLASS],
    model_type='mixtral',
    intermediate_size=settings['hidden'],
    rope_theta=settings.get('rope_theta', Mixtral.rope_theta),
    max_position_embeddings=settings.get('max_length', Mixtral.max_length),
    sliding_window=settings.get('window'),
    num_local_experts=settings['experts'],
    num_experts_per_tok=settings['experts_per_token'],
    router_aux_loss_coef=weight / settings['experts_per_token'],
  )


_CLASS = 'MixtralForCausalLM'
# [experts,2*F,D]: the rows of w1 come first, then those of w3.
_HALVES = {'gate': lambda x: x[:, : x.shape[1] // 2], 'up': lambda x: x[:, x.shape[1] // 2 :]}
OFFICIAL_FIELDS = foreign_config.Fields(
  used=(
    *(name for name in llama.META_FIELDS.used if name not in ('multiple_of', 'ffn_dim_multiplier')),
    'hidden_dim',
    'moe',
    'load_balancing_weight',
  ),
  neutral={
    **llama.META_FIELDS.neutral,
    'the official code takes dim / n_heads': ('head_dim',),
  },
  sections={'moe': foreign_config.Fields(used=('num_experts', 'num_experts_per_tok'))},
)
_HUGGINGFACE_FIELDS = foreign_config.transformers_fields(
  ('mixtral',),
  (_CLASS,),
  used=(
    *llama.HUGGINGFACE_FIELDS.used,
    'num_local_experts',
    'num_experts_per_tok',
    'router_aux_loss_coef',
  ),
  neutral={'what it returns': ('output_router_logits',)},
  only={
    'hidden_act': (None, 'silu', 'swish'),
    'attention_bias': (None, False),
    'router_jitter_noise': (None, 0.0),  # Noise in training, which the model does not have.
    'partial_rotary_factor': (None, 1.0),
  },
  sizes=llama.HUGGINGFACE_FIELDS.sizes,
)
_OFFICIAL_CONFIGS = {'config.json': OFFICIAL_FIELDS, 'params.json': OFFICIAL_FIELDS}

FORMS = {
  'mixtral_sparse': foreign.Form(
    'Mixtral of the official code, sparse',
    'layers.0.feed_forward.w2',
    _sparse,
    _from_official,
    unused=(r'rope\.freqs',),
    prefixes=('', 'llma.'),
    config=_to_official,
    configs=_OFFICIAL_CONFIGS,
  ),
  'mixtral': foreign.Form(
    'Mixtral of the official code, base',
    'layers.0.feed_forward.experts.0.w1.weight',
    _base,
    _from_base,
    unused=(r'rope\.freqs',),
    prefixes=('', 'llma.'),
    configs=_OFFICIAL_CONFIGS,
  ),
  'mixtral_mistral': foreign.Form(
    'Mixtral as Mistral names it',
    'layers.0.block_sparse_moe.w1',
    _mistral,
    _from_mistral,
    unused=(r'rope\.freqs',),
    configs={'params.json': OFFICIAL_FIELDS},
  ),
  'mixtral_hf': foreign.Form(
    'Mixtral of HF transformers',
    'model.layers.0.block_sparse_moe.gate.weight',
    _huggingface,
    _from_huggingface,
    unused=(r'.*\.rotary_emb\.inv_freq',),
    config=_to_huggingface,
    configs={'config.json': _HUGGINGFACE_FIELDS},
  ),
  'mixtral_hf_fused': foreign.Form(
    'Mixtral of HF transformers 5',
    'model.layers.0.mlp.experts.down_proj',
    _fused,
    _from_huggingface,
    configs={'config.json': _HUGGINGFACE_FIELDS},
    pieces=lambda config: {r'.*\.mlp\.experts\.gate_up_proj': _HALVES},
  ),
}
