"""Dialog templates: how turns become token ids, where images stand, and what is trained on.

A template is a row of STYLES. That of SPHINX writes the system prompt and a blank line, then
"### Human: question\\n" and "### Assistant: answer\\n" in turns, and "###" at the end. Only answers
are trained on: each answer, the space before it, and what ends it. Sources:
docs/official_sphinx.md, "Conversation"; docs/idefics2.md, "Chat".
"""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from sphinx_jax.core import errors
from sphinx_jax.data.record import MARK
from sphinx_jax.data.tokenizer import Tokenizer

# Where a single image stands in the dialog of SPHINX: before everything, or at its mark. Several
# images stand at their marks in any case.
IMAGES = ('front', 'inline')

# The official prompt (conversation template "default").
SYSTEM = (
  'A chat between a curious human and an artificial intelligence assistant. '
  "The assistant gives helpful, detailed, and polite answers to the human's questions."
)
_VICUNA_SYSTEM = SYSTEM.replace('human', 'user')
_LLAVA_SYSTEM = (
  'You are LLaVA, a large language and vision assistant trained by UW Madison WAIV Lab.'
  'You are able to understand the visual content that the user provides, and assist the user with '
  'a variety of tasks using natural language.'
  'Follow the instructions carefully and explain your answers in detail.'
)

# (question, answer). A question of None leaves out the human's line. An answer of None is not given
# yet.
Turn = tuple[str | None, str | None]


@dataclasses.dataclass(frozen=True)
class Style:
  """The texts around the turns of a dialog. `{}` stands for the turn's text.

  Attributes:
    system: default system prompt.
    system_line: the system prompt, if it is not empty.
    begin: comes before the first turn.
    question: a question.
    image_question: a question that begins with an image; None: as any other.
    asks: ends a prompt.
    answer: an answer; trained on.
    end: ends an answer; trained on, and ends generation.
    after: comes after `end`.
    specials: the special tokens among these texts. The tokenizer encodes what is between them
      piece by piece.
    jinja: the style as a chat template of transformers.
    around_image: special token on both sides of an image, and once between adjacent ones. '': none,
      and a single image comes before the text, whatever the marks in it say.
  """

  system: str
  system_line: str
  question: str
  asks: str
  end: str
  begin: str = ''
  image_question: str | None = None
  answer: str = ' {}'
  after: str = ''
  specials: tuple[str, ...] = ()
  jinja: str = ''
  around_image: str = ''


_USER = dict(system_line='{} ', question=' USER: {} ', end='</s>')
_IDEFICS2 = dict(system='', around_image='<fake_token_around_image>')
_IDEFICS2_JINJA = (
  "{% for message in messages %}{{message['role'].capitalize()}}"
  "{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}"
  "{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}"
  "{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>\n"
  "{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
STYLES = {
  'sphinx': Style(SYSTEM, '{}\n\n', ' Human: {}\n###', ' Assistant:', end='\n###', begin='###'),
  # Other templates of the official code. "multimodal" is that of SPHINX with another system prompt.
  'llava_v1': Style(_LLAVA_SYSTEM, asks=' ASSISTANT:', **_USER),
  'bair_v1': Style('BEGINNING OF CONVERSATION:', asks=' GPT:', **_USER),
  'vicuna_v1_1': Style(_VICUNA_SYSTEM, asks=' ASSISTANT:', **_USER),
  # idefics2-8b and -chatty, and the base model, which continues plain text.
  'idefics2': Style(
    system_line='System: {}<end_of_utterance>\n',
    question='User: {}<end_of_utterance>\n',
    image_question='User:{}<end_of_utterance>\n',
    asks='Assistant:',
    end='<end_of_utterance>',
    after='\n',
    specials=('<end_of_utterance>',),
    jinja=_IDEFICS2_JINJA,
    **_IDEFICS2,
  ),
  'idefics2_base': Style(
    system_line='{} ', question='{}', asks='', end='</s>', specials=('</s>',), **_IDEFICS2
  ),
}


class Encoded(NamedTuple):
  """A dialog or a prompt as ids.

  Attributes:
    ids: token ids, BOS first, without the visual tokens.
    weights: float32[len(ids)], 1 for labels, else 0.
    images_at: for each image slot, the number of ids before it, ascending.
  """

  ids: list[int]
  weights: np.ndarray
  images_at: tuple[int, ...]


class _Part(NamedTuple):
  """A stretch of text, a special token or an image.

  Attributes:
    text: the text, or the token.
    trained: whether it is trained on.
    kind: 'text', 'special' or 'image'.
  """

  text: str
  trained: bool = False
  kind: str = 'text'


@dataclasses.dataclass(frozen=True)
class Template:
  """Renders and tokenizes turns.

  Attributes:
    system: text before the first turn; None: that of the style.
    style: a name in STYLES.
    images: one of IMAGES, for a style that does not decide it.

  Raises:
    SphinxError: an unknown style or place of images.
  """

  system: str | None = None
  style: str = 'sphinx'
  images: str = 'front'

  def __post_init__(self) -> None:
    if self.style not in STYLES:
      raise errors.unknown('dialog template', self.style, STYLES)
    if self.images not in IMAGES:
      raise errors.unknown('dialog.images', self.images, IMAGES)

  @property
  def _style(self) -> Style:
    return STYLES[self.style]

  @property
  def has_turns(self) -> bool:
    """Whether questions and answers are told apart; a base model continues plain text."""
    return bool(self._style.asks)

  @property
  def stop(self) -> str:
    """Text that ends an answer; '' if a special token does."""
    return '' if self._style.end in self._style.specials else self._style.end

  @property
  def jinja(self) -> str:
    """The chat template of transformers; '' if there is none."""
    return self._style.jinja

  @property
  def stop_tokens(self) -> tuple[str, ...]:
    """Special tokens that end an answer, besides EOS."""
    return tuple({self._style.end} & {*self._style.specials})

  @property
  def image_tokens(self) -> tuple[str, ...]:
    """Special tokens of images, which are never generated."""
    return (MARK, self._style.around_image) if self.marks_images else ()

  @property
  def special_tokens(self) -> tuple[str, ...]:
    """Special tokens that the style needs, in the order of their ids in a new tokenizer."""
    return (*self.image_tokens[::-1], *self._style.specials)

  @property
  def marks_images(self) -> bool:
    """Whether `<image>` in a text always stands for an image."""
    return bool(self._style.around_image)

  def count_marks(self, turns: Sequence[Turn], images: int, marks: str = 'text') -> int | None:
    """The number of places of images in the turns; None if `<image>` in them is text.

    Args:
      turns: (question, answer) pairs.
      images: number of images.
      marks: see `record.MARKS`.
    """
    if not self._is_inline(images, marks):
      return None
    return sum(text.count(MARK) for turn in turns for text in turn if text)

  def _is_inline(self, images: int, marks: str) -> bool:
    """Whether images stand where `<image>` is."""
    placed = images > 1 or 'inline' in (marks, self.images)
    return self.marks_images or (images > 0 and placed)

  def render(self, turns: Sequence[Turn], open_ended: bool = False) -> str:
    """Returns the dialog as one text, with `<image>` for images.

    Args:
      turns: (question, answer) pairs.
      open_ended: end where the last turn's answer begins.
    """
    return ''.join(part.text for part in self._parts(turns, open_ended))

  def encode(
    self,
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    slots: Sequence[int] = (),
    marks: str = 'text',
  ) -> Encoded:
    """Tokenizes a dialog to train on, EOS at its end.

    A text is encoded as a whole, and tokens are matched to answers by character. The official
    code instead searches for the ids of an answer after those of the answer before, so it labels an
    earlier question that has the same text (see tests/data/test_dialog.py).

    Args:
      turns: (question, answer) pairs.
      tokenizer: has the special tokens of the style.
      slots: image slots of every image of the dialog, in order.
      marks: what `<image>` in the turns is, see `record.MARKS`.

    Raises:
      SphinxError: not as many marks as images, or the tokenizer lacks a special token.
    """
    encoded = self._encode(turns, tokenizer, slots, marks, open_ended=False)
    weights = np.append(encoded.weights, np.float32(0))
    return Encoded([*encoded.ids, tokenizer.eos], weights, encoded.images_at)

  def prompt(
    self,
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    slots: Sequence[int] = (),
    begin: str = '',
    marks: str = 'text',
  ) -> Encoded:
    """Tokenizes a prompt that asks for the last turn's answer, which begins with `begin`."""
    return self._encode(turns, tokenizer, slots, marks, open_ended=True, begin=begin)

  def continuation(
    self,
    text: str,
    tokenizer: Tokenizer,
    slots: Sequence[int] = (),
    parse_special: bool = False,
  ) -> Encoded:
    """Tokenizes a text to continue as it is, without a dialog around it; see `encode`.

    Args:
      text: the text.
      tokenizer: as in `encode`.
      slots: as in `encode`.
      parse_special: whether special tokens written in the text become their ids.
    """
    inline = self._is_inline(len(slots), 'text')
    (text,) = self._with_marks([text], len(slots))
    parts = [_Part(text)]
    if parse_special:
      specials = set(tokenizer.specials) - {MARK}
      parts = [
        _Part(part, kind='special' if part in specials else 'text')
        for part in tokenizer.split(text)
        if part
      ]
    return _tokenize(self._place_images(parts, slots, inline), tokenizer, slots, self._style)

  def _encode(
    self,
    turns: Sequence[Turn],
    tokenizer: Tokenizer,
    slots: Sequence[int],
    marks: str,
    open_ended: bool,
    begin: str = '',
  ) -> Encoded:
    inline = self._is_inline(len(slots), marks)
    if marks == 'loose' and not inline:
      turns = [(q and q.replace(MARK, '').strip(), answer) for q, answer in turns]
    questions = self._with_marks([question for question, _ in turns], len(slots))
    turns = [(question, answer) for question, (_, answer) in zip(questions, turns)]
    parts = [*self._parts(turns, open_ended), *([_Part(begin)] if begin else [])]
    parts = self._place_images(parts, slots, inline)
    return _tokenize(parts, tokenizer, slots, self._style)

  def _with_marks(self, texts: Sequence[str | None], images: int) -> list[str | None]:
    """Puts images that no text marks at the beginning of the first one, if that is their place."""
    if not self.marks_images or any(MARK in (text or '') for text in texts):
      return list(texts)
    return [MARK * images + (texts[0] or '') if images else texts[0], *texts[1:]]

  def _parts(self, turns: Sequence[Turn], open_ended: bool) -> list[_Part]:
    """The texts and special tokens of a dialog, without images."""
    style = self._style
    system = style.system if self.system is None else self.system
    parts = self._around(style.system_line, system) if system else []
    parts += self._around(style.begin, '')
    for i, (question, answer) in enumerate(turns):
      if question is not None:
        has_image = style.image_question is not None and question.startswith(MARK)
        parts += self._around(style.image_question if has_image else style.question, question)
      parts += self._around(style.asks, '')
      if open_ended and i == len(turns) - 1:
        break
      answered = self._around(style.answer, answer) + self._around(style.end, '')
      parts += [part._replace(trained=True) for part in answered]
      parts += self._around(style.after, '')
    return parts

  def _around(self, text: str, turn: str) -> list[_Part]:
    """A text of the style with a turn's text in it. Special tokens in the turn are text."""
    before, _, after = text.partition('{}')
    turn = turn if '{}' in text else ''
    return [*self._split(before), *([_Part(turn)] if turn else []), *self._split(after)]

  def _split(self, text: str) -> Iterator[_Part]:
    """A text of the style, with its special tokens apart."""
    for special in self._style.specials:
      if special in text:
        before, _, after = text.partition(special)
        yield from self._split(before)
        yield _Part(special, kind='special')
        yield from self._split(after)
        return
    if text:
      yield _Part(text)

  def _place_images(
    self, parts: Sequence[_Part], slots: Sequence[int], inline: bool
  ) -> list[_Part]:
    """Puts images where the marks are, or in front of everything.

    Raises:
      SphinxError: not as many marks as images.
    """
    image = _Part(MARK, kind='image')
    marks = sum(part.text.count(MARK) for part in parts if part.kind == 'text')
    if not inline or not (marks or self.marks_images):
      return [*[image] * len(slots), *parts]
    if marks != len(slots):
      raise errors.make(
        'dialog',
        f'{len(slots)} images and {marks} {MARK} marks',
        'one mark for every image',
        'correct the text or the list of images',
      )
    placed = []
    for part in parts:
      if part.kind != 'text':
        placed.append(part)
        continue
      for number, text in enumerate(part.text.split(MARK)):
        placed += [image] if number else []
        placed += [part._replace(text=text)] if text else []
    return placed


def _tokenize(
  parts: Sequence[_Part], tokenizer: Tokenizer, slots: Sequence[int], style: Style
) -> Encoded:
  """Encodes each stretch of text between special tokens and images as a whole."""
  ids, weights, images_at = [tokenizer.bos], [0.0], []
  around = [_special_id(style.around_image, tokenizer)] if slots and style.around_image else []
  slots_of_image = iter(slots)
  for kind, group in itertools.groupby(parts, key=lambda part: part.kind):
    if kind == 'text':
      new, labels = _tokenize_stretch(list(group), tokenizer)
      ids += new
      weights += labels
    elif kind == 'special':
      for part in group:
        ids.append(_special_id(part.text, tokenizer))
        weights.append(float(part.trained))
    else:
      count = sum(next(slots_of_image) for _ in group)
      ids += around
      for _ in range(count):
        images_at.append(len(ids))
        ids += around
      weights += [0.0] * (len(ids) - len(weights))
  return Encoded(ids, np.array(weights, np.float32), tuple(images_at))


def _tokenize_stretch(parts: Sequence[_Part], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
  """Returns the ids of texts that are encoded as one, and which of them are labels."""
  ids, begins = tokenizer.encode_begins(''.join(part.text for part in parts))
  is_label, begin = np.zeros(len(ids), bool), 0
  for part in parts:
    end = begin + len(part.text)
    if part.trained:
      is_label |= (begins >= begin) & (begins < end)
    begin = end
  return ids, is_label.tolist()


def _special_id(token: str, tokenizer: Tokenizer) -> int:
  if token not in tokenizer.specials:
    raise errors.make(
      'dialog template',
      f'{token}, which the tokenizer does not have',
      f'one of its special tokens ({", ".join(tokenizer.specials)})',
      "take the template of the model; a base model continues plain text ('idefics2_base')",
    )
  return tokenizer.specials[token]
