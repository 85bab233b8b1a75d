"""The user's own preference pairs: JSON lines, or one JSON list.

An item is {"prompt": question, "chosen": answer, "rejected": worse answer} with "image" or "images"
as jsonl.py has them. Each of the three may be a list of messages in place of a text, as TRL writes
them; without a prompt, "chosen" and "rejected" are whole dialogs that differ in their last answer.
LLaMA-Factory has the prompt as "conversations", and each answer as one message.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sphinx_jax.data.record import BadExample, Record
from sphinx_jax.datasets import conversations, jsonl
from sphinx_jax.datasets.files import ImageOf

_PROMPTS = ('prompt', 'conversations', 'messages')
_ANSWERS = ('chosen', 'rejected')


def open_source(entry: Mapping[str, Any], data_dir: str | Path | None = None) -> 'Pairs':
  """Opens the source of a mixture entry, whose keys are those of `jsonl.open_source`.

  Raises:
    SphinxError: see `jsonl.open_source`.
  """
  return jsonl.open_as(Pairs, 'pairs', entry, data_dir)


class Pairs(jsonl.Jsonl):
  """Pairs of a .json or .jsonl file. A turn's answer is the chosen one.

  Reading a record raises BadExample as `Jsonl` does, and 'not a pair': a key is missing, the
  answers are equal, or they answer different dialogs.
  """

  pairs = True

  def _record(self, location: str, item: Any, image_of: ImageOf) -> Record:
    chosen, rejected = (_dialog(location, item, key) for key in _ANSWERS)
    record = super()._record(location, chosen, image_of)
    other = conversations.read(location, rejected, self._frames)
    turns = conversations.read_turns(location, other.messages)
    *before, (question, answer) = turns
    if (*before, (question, record.turns[-1][1])) != record.turns:
      raise BadExample('not a pair', f'{location}: the dialogs differ before the last answer')
    if answer == record.turns[-1][1]:
      raise BadExample('not a pair', f'{location}: "chosen" and "rejected" are equal')
    return dataclasses.replace(record, rejected=answer)


def _dialog(location: str, item: Any, key: str) -> dict[str, Any]:
  """The item as a conversation that ends with the answer under `key`. Raises BadExample."""
  if not isinstance(item, dict):
    raise BadExample('not a pair', f'{location}: {item!r:.80} is not an object')
  rest = {name: value for name, value in item.items() if name not in (*_PROMPTS, *_ANSWERS)}
  prompt = next((name for name in _PROMPTS if item.get(name) is not None), None)
  asked = _messages(location, item, prompt, conversations.USER) if prompt else []
  messages = [*asked, *_messages(location, item, key, conversations.MODEL)]
  # In `messages` an image stands at its mark (conversations.py).
  return {**rest, 'conversations' if isinstance(item[key], str) else 'messages': messages}


def _messages(location: str, item: dict[str, Any], key: str, role: str) -> list[Any]:
  """The messages under a key: a text, a message or a list of them."""
  value = item.get(key)
  if isinstance(value, str):
    return [{'role': role, 'content': value}]
  if isinstance(value, dict):
    return [value]
  if not isinstance(value, list):
    raise BadExample(
      'not a pair', f'{location}: "{key}" is {value!r:.80}, neither text nor messages'
    )
  return value
