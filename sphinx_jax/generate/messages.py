"""Messages of a chat, as OpenAI and HF transformers have them, become the turns of a dialog."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from sphinx_jax.core import errors
from sphinx_jax.data.dialog import Turn
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import conversations

Messages = Sequence[Mapping[str, Any]]


class Asked(NamedTuple):
  """What messages ask for.

  Attributes:
    turns: pairs of which the last has no answer yet; `<image>` stands for every image.
    system: text of the system message; None without one.
    begin: beginning of the answer: the text of the last message if it is the assistant's.
  """

  turns: list[Turn]
  system: str | None
  begin: str


def _alternating(count: int) -> list[str]:
  return ([conversations.USER, conversations.MODEL] * count)[:count]


def read(messages: Messages) -> Asked:
  """Reads messages {role, content}, whose content is a text or a list of parts.

  Raises:
    SphinxError: no messages, one that is none (another role, content that is neither text nor
      parts), or not questions and answers in turns after at most one system message.
  """
  try:
    found = conversations.read_messages('messages', list(messages))
  except BadExample as error:
    raise errors.make('messages', error.message, 'role and content', 'correct them') from None
  system = None
  if found and found[0].role == conversations.SYSTEM:
    system, found = found[0].text, found[1:]
  roles = [message.role for message in found]
  if not roles or roles != _alternating(len(roles)):
    raise errors.make(
      'messages',
      f'the roles {", ".join(str(message.get("role")) for message in messages) or "of none"}',
      "'user' and 'assistant' in turns, after at most one 'system'",
      'join messages of one role',
    )
  texts: list[str | None] = [message.text for message in found]
  begin = ''
  if len(texts) % 2 == 0:
    begin, texts[-1] = f' {texts[-1]}', None
  else:
    texts.append(None)
  return Asked(list(zip(texts[::2], texts[1::2])), system, begin)
