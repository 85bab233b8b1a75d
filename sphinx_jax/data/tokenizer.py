"""Tokenizers in the style of LLaMA, and the training of one from a corpus."""

import functools
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from sphinx_jax.core import errors
from sphinx_jax.core.text import is_unicode

# Pieces of coordinate text, with spaces as sentencepiece writes them. A box of four coordinates has
# 13 tokens with them, 24 without. Coordinates take most positions of a small model's rows.
COORDINATE_SYMBOLS = ('[0.', '\u2581[0.', ',\u25810.', ';\u25810.')
# The major release of transformers whose ids a text becomes. v4, like sentencepiece, puts a space
# in front of every text, and v5 does not if the text begins with one.
IDS = ('v4', 'v5')
_SPACE = '\u2581'  # As pieces write it.


class Tokenizer:
  """A tokenizer in the style of LLaMA, with special tokens that no text becomes by itself.

  Args:
    model_bytes: contents of a `tokenizer.model` of sentencepiece, or of a `tokenizer.json`.
    added: text -> id of special tokens beyond a `tokenizer.model`. A `tokenizer.json` has its own.
    ids: one of IDS.

  Attributes:
    model_bytes: as given, so that checkpoints can carry them.
    added: as given.
    ids: as given.
    specials: text -> id of all special tokens that have a text.
    words: text -> id of tokens at which texts are cut before they are encoded.
    vocab_size: number of ids.
    bos: id of BOS.
    eos: id of EOS.

  Raises:
    SphinxError: the bytes are not a tokenizer, `added` has an id of the model, or `ids` is unknown.
  """

  def __init__(
    self, model_bytes: bytes, added: Mapping[str, int] | None = None, ids: str = 'v4'
  ) -> None:
    if ids not in IDS:
      raise errors.unknown('ids', ids, IDS)
    self.model_bytes, self.added, self.ids = bytes(model_bytes), dict(added or {}), ids
    is_json = self.model_bytes.lstrip()[:1] == b'{'
    self._model = JsonModel(self.model_bytes) if is_json else PieceModel(self.model_bytes)
    taken = [text for text, i in self.added.items() if i < self._model.size]
    if taken:
      raise errors.make(
        'tokenizer',
        f'added tokens with ids of the model ({", ".join(taken[:5])})',
        f'ids from {self._model.size} on',
        'take the files that belong together',
      )
    self.specials: dict[str, int] = self._model.specials | self.added
    self.vocab_size: int = max([self._model.size, *(i + 1 for i in self.added.values())])
    self.bos, self.eos = self._model.bos, self._model.eos
    self._is_added = frozenset(self.added.values())
    self.words: dict[str, int] = self._model.words
    self._word_of = {i: text for text, i in self.words.items()}

  def pieces(self) -> dict[int, str]:
    """Returns id -> piece, also of special tokens, to compare two tokenizers."""
    return self._model.pieces() | {i: text for text, i in self.added.items()}

  def encode(self, text: str, bos: bool = False, parse_special: bool = False) -> list[int]:
    """Returns the ids of a text.

    Args:
      text: the text.
      bos: whether BOS comes first.
      parse_special: whether special tokens written in the text become their ids, as in
        transformers. The stretches between them are encoded one by one. Otherwise they are text.

    Raises:
      SphinxError: the text is not unicode.
    """
    ids = self._parse(text) if parse_special else self._encode(text)
    return [self.bos, *ids] if bos else ids

  def _encode(self, text: str) -> list[int]:
    if self.words:
      return self.encode_begins(text)[0]
    if not self._has_space(text):
      return self._model.encode(text)
    return self._model.encode(text[1:]) or [self._model.space]

  def _has_space(self, text: str) -> bool:
    """Whether a text has the space already that the model would put in front of it."""
    return self.ids == 'v5' and text[:1] in (' ', _SPACE)

  def split(self, text: str) -> list[str]:
    """Cuts a text before and after each special token written in it."""
    return _split(text, self.specials)

  def _parse(self, text: str) -> list[int]:
    ids = []
    for part in self.split(text):
      if part in self.specials:
        ids.append(self.specials[part])
      elif part:
        ids += self._encode(part)
    return ids

  def encode_begins(self, text: str) -> tuple[list[int], np.ndarray]:
    """Returns the ids of a text and the character at which each begins, int64[n]."""
    if not self.words:
      return self._stretch_begins(text)
    ids, begins, at = [], [np.zeros(0, np.int64)], 0
    for part in _split(text, self.words):
      if part in self.words:
        new, starts = [self.words[part]], np.zeros(1, np.int64)
      elif part:
        new, starts = self._stretch_begins(part)
      else:
        continue
      ids += new
      begins.append(at + starts)
      at += len(part)
    return ids, np.concatenate(begins)

  def _stretch_begins(self, text: str) -> tuple[list[int], np.ndarray]:
    """The same of a text without added tokens."""
    if not self._has_space(text):
      return self._model.encode_begins(text)
    ids, begins = self._model.encode_begins(text[1:])
    begins = np.append(0, begins[1:] + 1)  # The first token has the space.
    return ids or [self._model.space], begins

  def with_specials(self, texts: Iterable[str]) -> 'Tokenizer':
    """The tokenizer with further special tokens behind its ids; those that it has stay."""
    new = [text for text in texts if text not in self.specials]
    added = {text: i for i, text in enumerate(new, self.vocab_size)}
    return Tokenizer(self.model_bytes, self.added | added, self.ids)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids, without special tokens and the space of the first word."""
    kept = [int(i) for i in ids if i not in self._is_added]
    if not self.words:
      return self._model.decode(kept)
    # The stretches between added tokens were encoded one by one, each with a space in front.
    parts = []
    for is_word, group in itertools.groupby(kept, self._word_of.__contains__):
      stretch = list(group)
      parts += [self._word_of[i] for i in stretch] if is_word else [self._model.decode(stretch)]
    return ''.join(parts)


def _split(text: str, tokens: Iterable[str]) -> list[str]:
  """Cuts a text before and after each of some tokens written in it."""
  pattern = '|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))
  return re.split(f'({pattern})', text) if pattern else [text]


class PieceModel:
  """A sentencepiece model.

  Args:
    model_bytes: contents of a `tokenizer.model`.

  Attributes:
    specials: text -> id of its control tokens.
    words: text -> id of tokens that texts are cut at, before they are encoded: the last ones, if
      they follow special tokens of transformers. A plain model finds its tokens by itself.
    size: number of ids.
    bos: id of BOS.
    eos: id of EOS.
    space: id of a space.

  Raises:
    SphinxError: the bytes are not a sentencepiece model, or it has no BOS or EOS.
  """

  def __init__(self, model_bytes: bytes) -> None:
    try:
      if not model_bytes:  # Sentencepiece would take them.
        raise ValueError('an empty file')
      self._model = sentencepiece.SentencePieceProcessor(model_proto=model_bytes)
    except Exception as error:  # Sentencepiece raises RuntimeError.
      raise errors.make(
        'tokenizer',
        f'{len(model_bytes)} bytes that do not load ({error})',
        'a sentencepiece tokenizer.model, or a tokenizer.json',
        'check the file',
      ) from error
    self.size: int = self._model.vocab_size()
    self.bos: int = self._model.bos_id()
    self.eos: int = self._model.eos_id()
    self.space: int = self._model.piece_to_id(_SPACE)
    if self.bos < 0 or self.eos < 0:
      raise errors.make(
        'tokenizer', 'no BOS or no EOS', "a tokenizer.model in LLaMA's style", 'check the file'
      )
    self.specials = {
      self._model.id_to_piece(i): i
      for i in range(self.size)
      if self._model.is_control(i) or self._model.is_unknown(i)
    }
    last = max(self.specials.values())
    behind = range(last + 1, self.size) if last > max(self.bos, self.eos) else ()
    # Pieces that were trained have negative scores, bytes aside.
    are_added = all(self._model.get_score(i) == 0 and not self._model.is_byte(i) for i in behind)
    self.words = {self._model.id_to_piece(i): i for i in behind if are_added}

  def pieces(self) -> dict[int, str]:
    """Returns id -> piece."""
    return {i: self._model.id_to_piece(i) for i in range(self.size)}

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text. Raises SphinxError if it is not unicode."""
    return self._encode(text)

  def _encode(self, text: str, **options: Any) -> Any:
    try:
      return self._model.encode(text, **options)
    except (RuntimeError, TypeError) as error:
      if isinstance(text, str) and is_unicode(text):
        raise
      raise _not_unicode(text) from error

  def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Returns the ids of a text and the characters [begin, end) that each id covers.

    If several byte tokens form one character, the last of them covers it.
    """
    encoded = self._encode(text, return_type='offset_mapping', return_bytes=False)
    return list(encoded['ids']), list(encoded['offsets'])

  def encode_begins(self, text: str) -> tuple[list[int], np.ndarray]:
    """Returns the ids of a text and the character at which each begins, int64[n].

    The result is that of `encode_spans`. ASCII text takes half its time.
    """
    if text.isascii():
      ids = self._model.encode(text)
      lengths = self._lengths[ids]
      ends = np.cumsum(lengths)
      # The first piece carries a space that is not in the text. If the sum differs, the tokenizer
      # normalizes texts.
      if ids and ends[-1] == len(text) + 1:
        return ids, np.maximum(ends - lengths - 1, 0)
    ids, spans = self.encode_spans(text)
    return ids, np.array([begin for begin, _ in spans], np.int64)

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    """The number of characters that each id stands for, int64[size]. A byte counts as one."""

    def length(i: int) -> int:
      if self._model.is_control(i) or self._model.is_unknown(i):
        return 0
      return 1 if self._model.is_byte(i) else len(self._model.id_to_piece(i))

    return np.array([length(i) for i in range(self.size)])

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids, without control tokens and the space of the first word."""
    return self._model.decode(ids)


class JsonModel:
  """A `tokenizer.json`, read by the library `tokenizers`.

  Args:
    model_bytes: its contents.

  Attributes: as those of PieceModel.

  Raises:
    SphinxError: the bytes are no such file, or it has no BOS and EOS.
  """

  def __init__(self, model_bytes: bytes) -> None:
    import tokenizers  # Imported here, as most models have a tokenizer.model.

    try:
      self._model = tokenizers.Tokenizer.from_buffer(model_bytes)
    except Exception as error:  # The library raises a plain Exception.
      raise errors.make(
        'tokenizer',
        f'{len(model_bytes)} bytes that do not load ({error})',
        'a tokenizer.json of the library tokenizers',
        'check the file',
      ) from error
    self._model.encode_special_tokens = True  # As text.
    self._model.no_padding()
    self._model.no_truncation()
    self.specials = {
      token.content: i
      for i, token in self._model.get_added_tokens_decoder().items()
      if token.special
    }
    self.words = {
      token.content: i
      for i, token in self._model.get_added_tokens_decoder().items()
      if not token.special
    }
    self.size: int = 1 + max(self._model.get_vocab(with_added_tokens=True).values())
    if not {'<s>', '</s>'} <= self.specials.keys():
      raise errors.make(
        'tokenizer.json',
        f'special tokens {", ".join(self.specials)[:200]}',
        '<s> and </s> among them',
        'this tokenizer is not supported',
      )
    self.bos, self.eos = self.specials['<s>'], self.specials['</s>']
    self.space: int | None = self._model.token_to_id(_SPACE)

  def pieces(self) -> dict[int, str]:
    """Returns id -> piece."""
    return {i: piece for piece, i in self._model.get_vocab(with_added_tokens=True).items()}

  def encode(self, text: str) -> list[int]:
    """Returns the ids of a text. Raises SphinxError if it is not unicode."""
    return self._encode(text).ids

  def _encode(self, text: str) -> Any:
    try:
      return self._model.encode(text, add_special_tokens=False)
    except (UnicodeError, TypeError) as error:
      raise _not_unicode(text) from error

  def encode_begins(self, text: str) -> tuple[list[int], np.ndarray]:
    """Returns the ids of a text and the character at which each begins, int64[n]."""
    encoded = self._encode(text)
    return encoded.ids, np.array([begin for begin, _ in encoded.offsets], np.int64)

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids, without special tokens and the space of the first word."""
    return self._model.decode(ids, skip_special_tokens=True)


def _not_unicode(text: Any) -> errors.SphinxError:
  return errors.make(
    'text',
    f'{text!a:.80}, which is not unicode',
    'characters only',
    'read or type the text in its own encoding',
  )


def load(path: str | Path) -> Tokenizer:
  """Loads a `tokenizer.model` file.

  Raises:
    SphinxError: there is no such file, or it is not a sentencepiece model.
  """
  if not Path(path).is_file():
    raise errors.make(
      'tokenizer', f'no file {path}', 'a sentencepiece tokenizer.model', 'check the path'
    )
  return Tokenizer(Path(path).read_bytes())


def check_fits(tokenizer: Tokenizer, path: str, vocab: int) -> None:
  """Checks that a model has a row for every id of its tokenizer.

  Args:
    tokenizer: the tokenizer.
    path: where it comes from, for the message.
    vocab: number of ids of the model.

  Raises:
    SphinxError: there are more ids.
  """
  if tokenizer.vocab_size > vocab:
    raise errors.make(
      f"tokenizer '{path}'",
      f'{tokenizer.vocab_size} ids',
      f'at most model.llm.vocab {vocab}',
      'raise the vocabulary or take another tokenizer',
    )


def train(
  lines: Iterable[str], vocab_size: int, user_symbols: Sequence[str] = COORDINATE_SYMBOLS
) -> bytes:
  """Trains a tokenizer like LLaMA's.

  It is a BPE model with split digits, byte fallback, no normalization, ids 0 (unk), 1 (BOS) and 2
  (EOS), and no padding id.

  Args:
    lines: texts. A text may contain newlines: they are byte tokens, and no piece contains one.
    vocab_size: number of ids, the 256 bytes and 3 control ids included.
    user_symbols: strings that are always one token, with spaces as U+2581.

  Returns:
    The bytes of the model file. The same lines give the same bytes.

  Raises:
    SphinxError: the corpus does not fill the vocabulary, or has too many different characters.
  """
  model = io.BytesIO()
  try:
    sentencepiece.SentencePieceTrainer.train(
      sentence_iterator=(line for text in lines for line in text.split('\n') if line.strip()),
      model_writer=model,
      model_type='bpe',
      vocab_size=vocab_size,
      user_defined_symbols=list(user_symbols),
      unk_id=0,
      bos_id=1,
      eos_id=2,
      pad_id=-1,
      byte_fallback=True,
      split_digits=True,
      character_coverage=0.99995,
      normalization_rule_name='identity',
      remove_extra_whitespaces=False,
      add_dummy_prefix=True,
      max_sentence_length=1 << 20,
      num_threads=1,
      minloglevel=2,
    )
  except Exception as error:  # Sentencepiece raises RuntimeError.
    raise errors.make(
      'tokenizer training',
      f'vocab_size={vocab_size} ({str(error).strip()})',
      'a corpus that fills the vocabulary and whose characters fit in it',
      'change vocab_size or give more text',
    ) from error
  return model.getvalue()
