"""Conversations in the formats of the common tools, as messages and the path of an image.

An item is a JSON object of one of these forms:

    conversations or messages        [{from or role, value or content}, ...] (LLaVA, ShareGPT,
                                     Qwen-VL, InternVL, OpenAI). content may be a list of parts
                                     {type, text} and {type, image or image_url}
    query, response                  one question and its answer (ms-swift)
    instruction, input?, output      the same (Alpaca)

`system` is the text of a system message. With the last two forms, `history` is a list of earlier
[question, answer]. The image is a path under one of `_IMAGE_KEYS` of the item, a message or a part,
alone or as a list of one, or stands in a question as Qwen-VL's <img>path</img>. Whatever means an
image and cannot be read as one makes a BadExample, so that no question about an image is trained
without it.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.fields import as_text

MARK = '<image>'
USER, MODEL, SYSTEM = 'user', 'model', 'system'

# Speakers in small letters -> role.
_ROLES = {
  **dict.fromkeys(('human', 'user'), USER),
  **dict.fromkeys(
    ('gpt', 'chatgpt', 'assistant', 'model', 'bot', 'ai', 'bing', 'bard', 'claude'), MODEL
  ),
  **dict.fromkeys(('system', 'developer'), SYSTEM),
}
_LISTS = ('conversations', 'messages')
# (keys of the question, key of the answer)
_PAIRS = ((('query',), 'response'), (('instruction', 'input'), 'output'))

# Keys in the form of `_plain`.
_IMAGE_KEYS = frozenset(
  f'{name}{ending}' for name in ('image', 'img') for ending in ('', 's', 'path', 'paths', 'file')
)
_PART_KEYS = _IMAGE_KEYS | {'imageurl'}
_OTHER_MEDIA = frozenset(
  f'{name}{ending}' for name in ('video', 'audio') for ending in ('', 's', 'path', 'paths')
)
_MEANS_IMAGE = re.compile('image|img|picture|photo')
_NO_PATHS = frozenset(('id', 'value', 'content', *(key for keys, _ in _PAIRS for key in keys)))
_IMAGE_FILE = re.compile(r'\S.*\.(avif|bmp|gif|heic|jpe?g|png|tiff?|webp)', re.IGNORECASE)
# What stands for an image in the questions of other tools.
_MARK = re.compile(
  r'<\|?(image([ _-]?\d+|here|_(pad|placeholder|soft_token|start|token))?|img_context'
  r'|(begin|start)_of_image|vision_start)\|?>',
  re.IGNORECASE,
)
_QWEN_IMAGE = re.compile(r'(?:Picture \d+:\s*)?<img>(.*?)</img>', re.DOTALL)


class Message(NamedTuple):
  """A message. `role` is USER, MODEL or SYSTEM."""

  role: str
  text: str


class Conversation(NamedTuple):
  """A conversation. `image` is the path of its image, None without one."""

  messages: list[Message]
  image: str | None


def read(location: str, item: Any) -> Conversation:
  """Reads an item.

  Args:
    location: of the item, for messages.
    item: a JSON value.

  Raises:
    BadExample: 'not a conversation', 'unknown speaker', 'unsupported loss mask'; 'missing image',
      'several images', 'unknown image key', 'unsupported media'. The message names the key.
  """
  if not isinstance(item, dict):
    raise BadExample('not a conversation', f'{location}: {item!r:.80} is not an object')
  turns = next((item[key] for key in _LISTS if isinstance(item.get(key), list)), None)
  holders = [item, *(turn for turn in turns or () if isinstance(turn, dict))]
  paths = [path for holder in holders for path in _paths_of_keys(location, holder)]
  messages = []
  for role, value in _values(location, item, turns):
    count = len(paths)
    text = ''.join(_texts(location, value, paths))
    if role == MODEL and len(paths) > count:
      raise BadExample(
        'unsupported media', f'{location}: an answer has the image {paths[-1]!r:.80}'
      )
    if role == USER:
      paths += _QWEN_IMAGE.findall(text)
      text = _QWEN_IMAGE.sub('', text)
    messages.append(Message(role, text))
  paths = list(dict.fromkeys(path.removeprefix('file://') for path in paths))
  if len(paths) > 1:
    raise BadExample(
      'several images', f'{location}: {len(paths)} images, one image an example is supported'
    )
  if not paths:
    _check_text_only(location, holders, messages)
  if any(text.count(MARK) > 1 for _, text in messages):
    raise BadExample('several images', f'{location}: a question has {MARK} twice, but one image')
  if item.get('objects') and any(re.search('<bbox>|<ref-object>', text) for _, text in messages):
    raise BadExample('not a conversation', f'{location}: a text has places for "objects"')
  return Conversation(messages, paths[0] if paths else None)


def read_turns(location: str, messages: list[Message]) -> tuple[tuple[str | None, str], ...]:
  """Returns the (question, answer) pairs of messages in LLaVA's format.

  MARK is removed from the texts, which are then stripped (docs/official_sphinx.md,
  "Conversation"). A system message is put before the next question. An answer without a question
  before it has the question None. A last question without an answer has nothing to train, and is
  dropped.

  Args:
    location: of the item, for messages.
    messages: those of `read`.

  Raises:
    BadExample: 'not a conversation', 'empty answer'.
  """
  turns: list[tuple[str | None, str | None]] = []
  previous = ''
  for role, text in messages:
    text = text.replace(MARK, '').strip()
    if role == SYSTEM and not text:
      continue
    is_open = bool(turns) and turns[-1][1] is None
    if role == MODEL:
      turns.append((turns.pop()[0] if is_open else None, text))
    elif not is_open:
      turns.append((text, None))
    elif role == previous == USER:
      raise BadExample(
        'not a conversation', f'{location}: two questions without an answer between them'
      )
    else:
      turns[-1] = (f'{turns[-1][0]}\n{text}', None)
    previous = role
  if messages and all(role == SYSTEM for role, _ in messages):
    raise BadExample('not a conversation', f'{location}: nothing but a system message')
  if turns and turns[-1][1] is None:
    turns.pop()
  if not turns:
    raise BadExample('empty answer', f'{location}: no answers')
  if not all(answer for _, answer in turns):
    raise BadExample('empty answer', f'{location}: an answer is empty')
  return tuple(turns)


def _values(
  location: str, item: dict[str, Any], turns: list[Any] | None
) -> Iterator[tuple[str, Any]]:
  """Yields (role, JSON value) of all messages. `turns` is the list under one of _LISTS, if any."""
  if as_text(item.get('system')):
    yield SYSTEM, item['system']
  if turns is not None:
    yield from (_role_and_value(location, turn) for turn in turns)
    return
  for questions, answer in _PAIRS:
    if questions[0] in item and answer in item:
      history = item.get('history') or []
      if not (isinstance(history, list) and all(_is_pair(pair) for pair in history)):
        raise BadExample('not a conversation', f'{location}: "history" is {history!r:.80}')
      yield from ((role, text) for pair in history for role, text in zip((USER, MODEL), pair))
      asked = [item[key] for key in questions if item.get(key) not in (None, '')]
      yield USER, [{'text': text} for value in asked for text in (value, '\n')][:-1]
      yield MODEL, item[answer]
      return
  keys = ', '.join(f'"{key}"' for key in item)
  raise BadExample(
    'not a conversation', f'{location}: no list "conversations" or "messages", but {keys:.200}'
  )


def _is_pair(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 2


def _role_and_value(location: str, turn: Any) -> tuple[str, Any]:
  speaker, value = None, None
  if isinstance(turn, dict):
    # Where two forms are merged, a message has the keys of both, some of them null.
    speaker = turn.get('from') or turn.get('role')
    value = turn.get('content') if turn.get('value') is None else turn['value']
  if not isinstance(speaker, str) or value is None:
    raise BadExample(
      'not a conversation',
      f'{location}: turn {turn!r:.80} needs "from" and "value", or "role" and "content"',
    )
  role = _ROLES.get(speaker.strip().lower())
  if role is None:
    raise BadExample('unknown speaker', f'{location}: {speaker!r:.80}, not one of {list(_ROLES)}')
  if role == MODEL and 0 in (turn.get('weight'), turn.get('loss')):
    raise BadExample(
      'unsupported loss mask', f'{location}: {turn!r:.80}: "weight" or "loss" excludes an answer'
    )
  return role, value


def _texts(location: str, value: Any, paths: list[str]) -> Iterator[str]:
  """Yields the texts of a message, MARK for an image without a path. Appends the paths."""
  parts = value if isinstance(value, list) else [value]
  if len(parts) > 1 and not any(isinstance(part, dict) for part in parts):
    raise BadExample('not a conversation', f'{location}: {value!r:.80} is a list, not one text')
  for part in parts:
    text = as_text(part)
    if isinstance(part, dict):
      text = as_text(part.get('text'))
      is_image = 'image' in str(part.get('type'))
      keys = _PART_KEYS | {'path', 'url'} if is_image else _PART_KEYS
      found = [
        path for key in part if _plain(key) in keys for path in _paths(location, key, part[key])
      ]
      paths += found
      if found or is_image:
        text = ('' if found else MARK) + (text or '')
    if text is None:
      raise BadExample('not a conversation', f'{location}: {part!r:.80} is no text')
    yield text


def _plain(key: str) -> str:
  return key.lower().replace('_', '').replace('-', '')


def _paths_of_keys(location: str, item: dict[str, Any]) -> Iterator[str]:
  for key, value in item.items():
    name = _plain(key)
    if name in _IMAGE_KEYS:
      yield from _paths(location, key, value)
    elif name in _OTHER_MEDIA and value:
      raise BadExample('unsupported media', f'{location}: "{key}" is {value!r:.80}')


def _paths(location: str, key: str, value: Any) -> list[str]:
  """The paths under a key of an image: none for null and an empty list."""
  if value is None:
    return []
  paths = []
  for path in value if isinstance(value, list) else [value]:
    if isinstance(path, dict):  # Of OpenAI, and of the library datasets.
      path = path.get('url', path.get('path'))
    if not isinstance(path, str) or not path:
      raise BadExample('missing image', f'{location}: "{key}" is {value!r:.80}')
    paths.append(path)
  return paths


def _check_text_only(location: str, holders: list[dict[str, Any]], messages: list[Message]) -> None:
  """Raises BadExample if an item without an image is about one. `holders` are it and its turns."""
  keys = ', '.join(f'"{key}"' for key in holders[0])
  for role, text in messages:
    mark = None if role == MODEL else _MARK.search(text)
    if mark:
      raise BadExample(
        'missing image', f'{location}: a question has {mark[0]}, but no image among {keys:.200}'
      )
  for key, value in (pair for holder in holders for pair in holder.items()):
    first = value[0] if value and isinstance(value, list) else value
    means_image = _MEANS_IMAGE.search(_plain(key)) and isinstance(first, str | dict)
    is_path = isinstance(first, str) and key not in _NO_PATHS and _IMAGE_FILE.fullmatch(first)
    if first and (means_image or is_path):
      raise BadExample(
        'unknown image key', f'{location}: "{key}" is {value!r:.80}; the key of a path is "image"'
      )
