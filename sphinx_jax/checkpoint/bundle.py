"""What a checkpoint carries beside its arrays so that the model can be used from it alone.

`Bundle` is the only writer and reader of the keys `config`, `tokenizer`, `dialog`, `added_tokens`,
`ids`, `weights` and `part` of a checkpoint's meta.
"""

import base64
import binascii
import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.checkpoint import store
from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.models import families, stored

_SHOWN = 5  # Tokens that a message names.


@dataclasses.dataclass(frozen=True)
class Bundle:
  """Config, tokenizer and dialog of a checkpoint.

  Attributes:
    config: the resolved config of the run; `config.model` describes the parameters.
    tokenizer: contents of the tokenizer.model or tokenizer.json, or None if there is none.
    dialog: arguments of `data.dialog.Template`.
    added_tokens: text -> id of the special tokens beside a tokenizer.model.
    ids: see `data.tokenizer.IDS`.
    weights: the form of the kernels (`models.quantized.STORED`); '': not quantized.
    part: name at the top of the parameter tree, of all that the checkpoint has; '': the whole tree.
  """

  config: ConfigDict
  tokenizer: bytes | None
  dialog: dict[str, Any]
  added_tokens: dict[str, int] = dataclasses.field(default_factory=dict)
  ids: str = 'v4'
  weights: str = ''
  part: str = ''

  @property
  def forms(self) -> dict[str, stored.Matrix]:
    """The layers of the checkpoint whose kernels are quantized."""
    if not self.weights:
      return {}
    return stored.matrices(families.logical_axes(self.config.model), self.weights)

  def open_tokenizer(self) -> Tokenizer | None:
    """Returns the tokenizer with its added tokens."""
    if self.tokenizer is None:
      return None
    return Tokenizer(self.tokenizer, self.added_tokens, self.ids)

  def to_meta(self) -> dict[str, Any]:
    """Returns the JSON-able entries of a checkpoint's meta: the tokenizer is base64 text."""
    encoded = None if self.tokenizer is None else base64.b64encode(self.tokenizer).decode()
    return {
      'config': config_lib.to_json(self.config),
      'tokenizer': encoded,
      'dialog': dict(self.dialog),
      **({'added_tokens': self.added_tokens} if self.added_tokens else {}),
      **({'ids': self.ids} if self.ids != 'v4' else {}),
      **({'weights': self.weights} if self.weights else {}),
      **({'part': self.part} if self.part else {}),
    }

  @classmethod
  def from_meta(cls, meta: Mapping[str, Any], where: store.Path) -> 'Bundle':
    """Returns the bundle of a checkpoint's meta.

    Args:
      meta: from `store.load_meta` or `Store.restore_newest`. Keys of older configs are renamed.
      where: the checkpoint's directory, for error messages.

    Raises:
      SphinxError: there is no config, or the config or the tokenizer is unreadable.
    """
    try:
      config = config_lib.from_json(meta['config'])
      encoded = meta.get('tokenizer')
      tokenizer = base64.b64decode(encoded, validate=True) if encoded else None
    except (KeyError, TypeError, json.JSONDecodeError, binascii.Error) as error:
      raise errors.make(
        f"checkpoint '{where}'",
        f'a meta without a readable config and tokenizer ({type(error).__name__}: {error})',
        'the config as JSON text and the tokenizer as base64 text',
        'take a checkpoint that train, convert or mix_weights wrote',
      ) from error
    dialog, added = (dict(meta.get(key) or {}) for key in ('dialog', 'added_tokens'))
    ids, weights = meta.get('ids', 'v4'), meta.get('weights', '')
    return cls(config, tokenizer, dialog, added, ids, weights, meta.get('part', ''))


def load_bundle(directory: store.Path) -> Bundle:
  """Returns the bundle of a checkpoint: of a run's directory (its newest step) or of one step's."""
  return Bundle.from_meta(store.load_meta(directory), directory)


def check_same_model(
  who: str, directories: Sequence[store.Path], bundles: Sequence[Bundle]
) -> None:
  """Compares the tokenizers, dialogs and model settings of several checkpoints.

  Raises:
    SphinxError: one of them differs from the first; the message has `who`, the directory and the
      settings.
  """
  for directory, bundle in zip(directories[1:], bundles[1:]):
    if bundle.tokenizer != bundles[0].tokenizer:
      raise errors.make(
        f"{who}, input '{directory}'",
        f'another tokenizer{_token_differences(bundle, bundles[0])}',
        f"that of '{directories[0]}'",
        'take checkpoints of one tokenizer',
      )
    different = differences(bundles[0], bundle)
    if different:
      raise errors.make(
        f"{who}, input '{directory}'",
        f'another model ({"; ".join(map(str, different))[:1000]})',
        f"that of '{directories[0]}'",
        'mix checkpoints of one model config',
      )


def _token_differences(one: Bundle, other: Bundle) -> str:
  """The tokens that one of two bundles has alone, in parentheses; '' if they cannot be compared."""
  try:
    opened = [bundle.open_tokenizer() for bundle in (one, other)]
  except errors.SphinxError:  # Bytes of no tokenizer.
    return ''
  here, there = (set(tokenizer.pieces().items()) if tokenizer else set() for tokenizer in opened)
  lines = []
  for words, found in (('has', here - there), ('lacks', there - here)):
    texts = [repr(text) for _, text in sorted(found)]
    more = ', ...' if len(texts) > _SHOWN else ''
    lines += [f'it {words} {len(texts)}: {", ".join(texts[:_SHOWN])}{more}'] if texts else []
  return f' ({"; ".join(lines)})' if lines else ''


def differences(first: Bundle, second: Bundle) -> list[config_lib.Difference]:
  """Returns the settings of model and text in which the weights of two checkpoints differ."""

  def settings(bundle: Bundle) -> dict[str, Any]:
    model = bundle.config.get('model') or {}
    weights = families.settings_of_weights(model) if 'llm' in model else {}
    return {**weights, 'dialog': dict(bundle.dialog), 'ids': bundle.ids}

  return config_lib.differences(settings(first), settings(second))
