"""Sentencepiece tokenizers in the style of LLaMA, and their training from a corpus."""

import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from sphinx_jax.core import errors
from sphinx_jax.core.text import is_unicode

# Pieces of coordinate text, with spaces as sentencepiece writes them. A box of four coordinates has
# 13 tokens with them, 24 without. Coordinates take most positions of a small model's rows.
COORDINATE_SYMBOLS = ('[0.', '\u2581[0.', ',\u25810.', ';\u25810.')


class Tokenizer:
  """A sentencepiece model.

  Args:
    model_bytes: contents of a `tokenizer.model`.

  Attributes:
    model_bytes: as given, so that checkpoints can carry them.
    vocab_size: number of ids.
    bos: id of BOS.
    eos: id of EOS.

  Raises:
    SphinxError: the bytes are not a sentencepiece model, or it has no BOS or EOS.
  """

  def __init__(self, model_bytes: bytes) -> None:
    self.model_bytes = bytes(model_bytes)
    try:
      if not self.model_bytes:  # Sentencepiece would take them.
        raise ValueError('an empty file')
      self._model = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
    except Exception as error:  # Sentencepiece raises RuntimeError.
      raise errors.make(
        'tokenizer',
        f'{len(self.model_bytes)} bytes that do not load ({error})',
        'a sentencepiece tokenizer.model',
        'check the file',
      ) from error
    self.vocab_size: int = self._model.vocab_size()
    self.bos: int = self._model.bos_id()
    self.eos: int = self._model.eos_id()
    if self.bos < 0 or self.eos < 0:
      raise errors.make(
        'tokenizer', 'no BOS or no EOS', "a tokenizer.model in LLaMA's style", 'check the file'
      )

  def encode(self, text: str, bos: bool = False) -> list[int]:
    """Returns the ids of a text, after BOS if `bos`. Raises SphinxError if it is not unicode."""
    ids = self._encode(text)
    return [self.bos, *ids] if bos else ids

  def _encode(self, text: str, **options: Any) -> Any:
    try:
      return self._model.encode(text, **options)
    except (RuntimeError, TypeError) as error:
      if isinstance(text, str) and is_unicode(text):
        raise
      raise errors.make(
        'text',
        f'{text!a:.80}, which is not unicode',
        'characters only',
        'read or type the text in its own encoding',
      ) from error

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
    """The number of characters that each id stands for, int64[vocab_size]. A byte counts as one."""

    def length(i: int) -> int:
      if self._model.is_control(i) or self._model.is_unknown(i):
        return 0
      return 1 if self._model.is_byte(i) else len(self._model.id_to_piece(i))

    return np.array([length(i) for i in range(self.vocab_size)])

  def decode(self, ids: Sequence[int]) -> str:
    """Returns the text of ids, without control tokens and the space of the first word."""
    return self._model.decode([int(i) for i in ids])


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
