"""Conversations in the formats of the common tools, as messages and the paths of their images.

An item is a JSON object of one of these forms:

    conversations or messages        [{from or role, value or content}, ...] (LLaVA, ShareGPT,
                                     Qwen-VL, InternVL, OpenAI, transformers). content may be a list
                                     of parts {type, text}, {type, image or image_url} and
                                     {type, video}
    query, response                  one question and its answer (ms-swift)
    instruction, input?, output      the same (Alpaca)

`system` is the text of a system message. With the last two forms, `history` is a list of earlier
[question, answer]. An image is a path under one of `_IMAGE_KEYS` of the item, a message or a part,
alone or in a list, or stands in a question as Qwen-VL's <img>path</img>. `<image>` in a question is
the place of the next image without one; without any mark, images stand before the dialog. A video
(`video`, mark `<video>`) becomes `frames` images. Whatever means an image and cannot be read as one
makes a BadExample, so that no question about an image is trained without it.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sphinx_jax.data import images
from sphinx_jax.data.record import MARK, BadExample
from sphinx_jax.datasets.fields import as_text

USER, MODEL, SYSTEM = 'user', 'model', 'system'

# Speakers in small letters -> role.
_ROLES = {
  **dict.fromkeys(('human', 'user'), USER),
  **dict.fromkeys(
    ('gpt', 'chatgpt', 'assistant', 'model', 'bot', 'ai', 'bing', 'bard', 'claude'), MODEL
  ),
  **dict.fromkeys(('system', 'developer'), SYSTEM),
}
# Keys of lists of messages.
LISTS = ('conversations', 'messages')
# (keys of the question, key of the answer)
PAIRS = ((('query',), 'response'), (('instruction', 'input'), 'output'))

# Keys in the form of `_plain`.
_IMAGE_KEYS = frozenset(
  f'{name}{ending}' for name in ('image', 'img') for ending in ('', 's', 'path', 'paths', 'file')
)
_VIDEO_KEYS, _AUDIO_KEYS = (
  frozenset(f'{name}{ending}' for ending in ('', 's', 'path', 'paths'))
  for name in ('video', 'audio')
)
FRAMES = 8  # Images of a video, unless the item has the number.
_MEANS_IMAGE = re.compile('image|img|picture|photo')
_NO_PATHS = frozenset(('id', 'value', 'content', *(key for keys, _ in PAIRS for key in keys)))
_IMAGE_FILE = re.compile(rf'\S.*\.({"|".join(images.ENDINGS)})', re.IGNORECASE)
# What stands for an image in the questions of other tools.
_MARK = re.compile(
  r'<\|?(image([ _-]?\d+|here|_(pad|placeholder|soft_token|start|token))?|img_context'
  r'|(begin|start)_of_image|vision_start)\|?>',
  re.IGNORECASE,
)
# The place of an image or a video in a question, with Qwen-VL's path.
_PLACE = re.compile(f'{MARK}|<video>|<img>(.*?)</img>', re.DOTALL)
_QWEN_NAME = re.compile(r'Picture \d+:\s*(?=<img>)')
_MARKS_AT_BEGIN = re.compile(rf'\A(?:{MARK}(?:\s*\n\s*)?)+')
_MARKS_AT_END = re.compile(rf'(?:(?:\s*\n\s*)?{MARK})+\Z')


class Message(NamedTuple):
  """A message. `role` is USER, MODEL or SYSTEM."""

  role: str
  text: str


class Media(NamedTuple):
  """An image, or a video of which some frames are shown.

  Attributes:
    path: the file, as the item has it; or a data: URL. '': the place of a file that the keys of the
      item or the message have.
    frames: number of images that a video becomes; 0: it is an image.
  """

  path: str
  frames: int = 0


class Conversation(NamedTuple):
  """A conversation.

  Attributes:
    messages: its messages. Every `<image>` in questions is the place of one image.
    media: its images and videos in order.
    marks: what the marks are, see `record.MARKS`.
  """

  messages: list[Message]
  media: list[Media]
  marks: str


def read(location: str, item: Any, frames: int = FRAMES) -> Conversation:
  """Reads an item.

  Args:
    location: of the item, for messages.
    item: a JSON value.
    frames: images that a video becomes, unless the item has the number as "frames".

  Raises:
    BadExample: 'not a conversation', 'unknown speaker', 'unsupported loss mask'; 'missing image',
      'image marks', 'unknown image key', 'unsupported media'. The message names the key.
  """
  if not isinstance(item, dict):
    raise BadExample('not a conversation', f'{location}: {item!r:.80} is not an object')
  form = next((key for key in LISTS if isinstance(item.get(key), list)), None)
  turns = item[form] if form else None
  frames = _frames(location, item, frames)
  places: list[Media] = []  # Of every mark.
  messages = []
  for role, value, turn in _values(location, item, turns):
    text = ''.join(_texts(location, role, value, places, frames))
    of_turn = _media_of_keys(location, turn, frames)
    _refuse_in_answer(location, role, of_turn and turn)
    if of_turn and MARK not in text:
      text = MARK * len(of_turn) + text
      places += of_turn
    elif of_turn:
      places[:] = _filled(location, places, of_turn)
    messages.append(Message(role, text))
  own = _media_of_keys(location, item, frames)
  has_paths = any(place.path for place in places)
  if not own and not has_paths:
    holders = [item, *(turn for turn in turns or () if isinstance(turn, dict))]
    _check_text_only(location, holders, messages)
  if item.get('objects') and any(re.search('<bbox>|<ref-object>', text) for _, text in messages):
    raise BadExample('not a conversation', f'{location}: a text has places for "objects"')
  if not places:
    return Conversation(messages, own, 'text')
  if len(own) == 1 and not has_paths:  # A mark in every question about one image.
    if any(text.count(MARK) > 1 for role, text in messages if role != MODEL):
      raise BadExample('image marks', f'{location}: a question has {MARK} twice, but one image')
    places, messages = own, _with_first_mark(messages)
  media = _filled(location, places, own)
  return Conversation(
    _expanded(messages, media), media, 'inline' if form == 'messages' else 'loose'
  )


def read_messages(location: str, turns: list[Any]) -> list[Message]:
  """Reads messages whose images the caller has; MARK stands for each.

  Raises:
    BadExample: as `read`.
  """
  return [
    Message(role, ''.join(_texts(location, role, value, [], FRAMES)))
    for role, value, _ in _values(location, {}, turns)
  ]


def _filled(location: str, places: Sequence[Media], unplaced: Sequence[Media]) -> list[Media]:
  """The media of all marks. Those without a path take the next one of the unplaced media.

  It is the next one of their kind, unless a mark of images stands for a video, or the reverse.

  Raises:
    BadExample: 'image marks': not as many marks as media.
  """
  stated = [media for media in places if media.path]
  if len(stated) == len(places):  # The item's keys may list again what parts have.
    unplaced = [media for media in unplaced if media not in stated]
  if len(places) - len(stated) != len(unplaced):
    raise BadExample(
      'image marks',
      f'{location}: {len(stated) + len(unplaced)} images and {len(places)} {MARK} marks',
    )
  kinds = [bool(media.frames) for media in places if not media.path]
  if sorted(kinds) == sorted(bool(media.frames) for media in unplaced):
    of_kind = {kind: [m for m in unplaced if bool(m.frames) == kind] for kind in kinds}
    unplaced = [of_kind[kind].pop(0) for kind in kinds]
  rest = iter(unplaced)
  return [media if media.path else next(rest) for media in places]


def _with_first_mark(messages: Sequence[Message]) -> list[Message]:
  """The messages without all marks but the first one in a question."""
  kept, seen = [], False
  for role, text in messages:
    if role != MODEL and MARK in text:
      text, seen = text.replace(MARK, '') if seen else text, True
    kept.append(Message(role, text))
  return kept


def _expanded(messages: Sequence[Message], media: Sequence[Media]) -> list[Message]:
  """The messages with a mark for every frame of a video."""
  rest = iter(media)
  expanded = []
  for role, text in messages:
    if role != MODEL:
      text = re.sub(MARK, lambda mark: MARK * (next(rest).frames or 1), text)
    expanded.append(Message(role, text))
  return expanded


def read_turns(location: str, messages: list[Message]) -> tuple[tuple[str | None, str], ...]:
  """Returns the (question, answer) pairs of messages in LLaVA's format.

  Texts are stripped, and line breaks between marks at their beginning or end and the rest are
  removed, as is MARK in answers (docs/official_sphinx.md, "Conversation"). A system message is put
  before the next question. An answer without a question before it has the question None. A last
  question without an answer has nothing to train, and is dropped.

  Args:
    location: of the item, for messages.
    messages: those of `read`.

  Raises:
    BadExample: 'not a conversation', 'empty answer'.
  """
  turns: list[tuple[str | None, str | None]] = []
  previous = ''
  for role, text in messages:
    text = text.replace(MARK, '').strip() if role == MODEL else _tidy(text)
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


def read_question(
  location: str, messages: list[Message]
) -> tuple[tuple[tuple[str | None, str], ...], str]:
  """Returns the turns before the last question of messages, and that question.

  Texts are as of `read_turns`. Answers after the last question, which the data may have, are left
  out.

  Args:
    location: of the item, for messages.
    messages: those of `read`.

  Raises:
    BadExample: as `read_turns`, or there is no question.
  """
  asked = max((i + 1 for i, message in enumerate(messages) if message.role == USER), default=0)
  *history, (question, _) = read_turns(location, [*messages[:asked], Message(MODEL, 'unknown')])
  if not question:
    raise BadExample('not a conversation', f'{location}: no question')
  return tuple(history), question


def _tidy(text: str) -> str:
  """Strips a question, and line breaks after its first and before its last marks."""
  text = _MARKS_AT_BEGIN.sub(_only_marks, text.strip())
  return _MARKS_AT_END.sub(_only_marks, text)


def _only_marks(found: re.Match[str]) -> str:
  return MARK * found[0].count(MARK)


def _values(
  location: str, item: dict[str, Any], turns: list[Any] | None
) -> Iterator[tuple[str, Any, dict[str, Any]]]:
  """Yields (role, JSON value, turn) of all messages; the turn is {} if it is no object.

  `turns` is the list under one of LISTS, if any.
  """
  if as_text(item.get('system')):
    yield SYSTEM, item['system'], {}
  if turns is not None:
    yield from (_role_and_value(location, turn) for turn in turns)
    return
  for questions, answer in PAIRS:
    if questions[0] in item and answer in item:
      history = item.get('history') or []
      if not (isinstance(history, list) and all(_is_pair(pair) for pair in history)):
        raise BadExample('not a conversation', f'{location}: "history" is {history!r:.80}')
      yield from ((role, text, {}) for pair in history for role, text in zip((USER, MODEL), pair))
      asked = [item[key] for key in questions if item.get(key) not in (None, '')]
      yield USER, [{'text': text} for value in asked for text in (value, '\n')][:-1], {}
      yield MODEL, item[answer], {}
      return
  keys = ', '.join(f'"{key}"' for key in item)
  raise BadExample(
    'not a conversation', f'{location}: no list "conversations" or "messages", but {keys:.200}'
  )


def _is_pair(value: Any) -> bool:
  return isinstance(value, list) and len(value) == 2


def _role_and_value(location: str, turn: Any) -> tuple[str, Any, dict[str, Any]]:
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
  return role, value, turn


def _texts(location: str, role: str, value: Any, places: list[Media], frames: int) -> Iterator[str]:
  """Yields the texts of a message, MARK for an image or a video. Appends what stands there."""
  parts = value if isinstance(value, list) else [value]
  if len(parts) > 1 and not any(isinstance(part, dict) for part in parts):
    raise BadExample('not a conversation', f'{location}: {value!r:.80} is a list, not one text')
  for part in parts:
    text = as_text(part)
    if isinstance(part, dict):
      text = as_text(part.get('text'))
      here = _media_of_keys(location, _of_part(part), frames)
      kind = re.search('image|video', str(part.get('type')))
      if not here and kind:
        here = [Media('', int(kind[0] == 'video'))]
      _refuse_in_answer(location, role, here and part)
      places += here
      if here:
        yield MARK * len(here)
        text = text or ''
    if text is None:
      raise BadExample('not a conversation', f'{location}: {part!r:.80} is no text')
    if role != MODEL:
      if len(re.findall('<img>', text)) == 1:
        text = _QWEN_NAME.sub('', text)
      places += [
        Media(_stripped(found[1] or ''), int(found[0] == '<video>'))
        for found in _PLACE.finditer(text)
      ]
      text = _PLACE.sub(MARK, text)
    yield text


def _of_part(part: dict[str, Any]) -> dict[str, Any]:
  """The media of a part as keys of an item: {'type': 'image', 'url': A} becomes {'image': A}."""
  kind = re.search('image|video', str(part.get('type')))
  return {
    kind[0] if kind and _plain(key) in ('path', 'url') else re.sub('(?i)_?url$', '', key): value
    for key, value in part.items()
    if key not in ('type', 'text')
  }


def _plain(key: str) -> str:
  return key.lower().replace('_', '').replace('-', '')


def _frames(location: str, item: dict[str, Any], default: int) -> int:
  """The number of images that a video of the item becomes."""
  frames = item.get('frames')
  if frames is None or isinstance(frames, list):  # A list of files is reported as an unknown key.
    return default
  if type(frames) is not int or frames < 1:
    raise BadExample('not a conversation', f'{location}: "frames" is {frames!r:.80}, not a number')
  return frames


def _refuse_in_answer(location: str, role: str, found: Any) -> None:
  """Raises BadExample if a message of the model, or a part of it, has media."""
  if found and role == MODEL:
    raise BadExample('unsupported media', f'{location}: an answer has media: {found!r:.80}')


def _media_of_keys(location: str, item: dict[str, Any], frames: int) -> list[Media]:
  """The images and videos under the keys of an item, a message or a part."""
  media: list[Media] = []
  for key, value in item.items():
    name = _plain(key)
    if name in _AUDIO_KEYS and value:
      raise BadExample('unsupported media', f'{location}: "{key}" is {value!r:.80}')
    if name not in _IMAGE_KEYS | _VIDEO_KEYS:
      continue
    shown = _frames(location, item, frames) if name in _VIDEO_KEYS else 0
    found = [
      Media(path, 0 if _IMAGE_FILE.fullmatch(path) and not path.lower().endswith('.gif') else shown)
      for path in _paths(location, key, value)
    ]
    if not set(found) <= set(media):  # Two keys may list the same files.
      media += found
  return media


def _paths(location: str, key: str, value: Any) -> list[str]:
  """The paths under a key of media: none for null and an empty list."""
  if value is None:
    return []
  paths = []
  for path in value if isinstance(value, list) else [value]:
    if isinstance(path, dict):  # Of OpenAI, and of the library datasets.
      path = path.get('url', path.get('path'))
    if not isinstance(path, str) or not path:
      raise BadExample('missing image', f'{location}: "{key}" is {value!r:.80}')
    paths.append(_stripped(path))
  return paths


def _stripped(path: str) -> str:
  return path.removeprefix('file://')


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
