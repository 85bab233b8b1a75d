"""Text <-> token ids: LLaMA-style sentencepiece models, and their training from a corpus."""

import functools
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from sphinx_jax.core import errors

# Pieces of coordinate text (spaces written as sentencepiece writes them). They make "[0.25, 0.31, 0.50, 0.62]" 13 tokens
# instead of 24; boxes, layouts and poses are most of the positions of a small model's rows.
COORDINATE_SYMBOLS = ('[0.', '\u2581[0.', ',\u25810.', ';\u25810.')


class Tokenizer:
  """A sentencepiece model.

  Args:
    model_bytes: contents of a `tokenizer.model`; kept as `.model_bytes` so that checkpoints can carry it.

  Raises:
    SphinxError: the bytes are no sentencepiece model.
  """

  def __init__(self, model_bytes: bytes):
    self.model_bytes = bytes(model_bytes)
    try:
      self._model = sentencepiece.SentencePieceProcessor(model_proto=self.model_bytes)
    except Exception as error:  # sentencepiece raises bare RuntimeError
      raise errors.make(
        'tokenizer',
        f'{len(self.model_bytes)} bytes that do not load ({error})',
        'a sentencepiece tokenizer.model',
        'check the file',
      ) from error
    self.vocab_size: int = self._model.vocab_size()
    self.bos: int = self._model.bos_id()
    self.eos: int = self._model.eos_id()

  def encode(self, text: str, bos: bool = False) -> list[int]:
    """Ids of text, after BOS if asked."""
    ids = self._model.encode(text)
    return [self.bos, *ids] if bos else ids

  def encode_spans(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids of text and the characters [begin, end) that each covers; of a character in several bytes the last has it."""
    found = self._model.encode(text, return_type='offset_mapping', return_bytes=False)
    return list(found['ids']), list(found['offsets'])

  def encode_begins(self, text: str) -> tuple[list[int], np.ndarray]:
    """Ids of text and the character int64[n] where each begins, as `encode_spans`; in half its time where all is ASCII."""
    if text.isascii():
      ids = self._model.encode(text)
      lengths = self._lengths[ids]
      ends = np.cumsum(lengths)
      # The first piece carries a space that is not in the text. A tokenizer that changes texts has another sum.
      if ids and ends[-1] == len(text) + 1:
        return ids, np.maximum(ends - lengths - 1, 0)
    ids, spans = self.encode_spans(text)
    return ids, np.array([begin for begin, _ in spans], np.int64)

  @functools.cached_property
  def _lengths(self) -> np.ndarray:
    """Characters of the text that each id stands for, int64[vocab_size]; a byte is one."""

    def length(i: int) -> int:
      if self._model.is_control(i) or self._model.is_unknown(i):
        return 0
      return 1 if self._model.is_byte(i) else len(self._model.id_to_piece(i))

    return np.array([length(i) for i in range(self.vocab_size)])

  def decode(self, ids: Sequence[int]) -> str:
    """Text of ids; control tokens vanish, and so does the space that the first word carries."""
    return self._model.decode([int(i) for i in ids])


def load(path: str | Path) -> Tokenizer:
  """The tokenizer of a `tokenizer.model` file.

  Raises:
    SphinxError: no such file, or not a sentencepiece model.
  """
  if not Path(path).is_file():
    raise errors.make(
      'tokenizer', f'no file {path}', 'a sentencepiece tokenizer.model', 'check the path'
    )
  return Tokenizer(Path(path).read_bytes())


def train(
  lines: Iterable[str], vocab_size: int, user_symbols: Sequence[str] = COORDINATE_SYMBOLS
) -> bytes:
  """Trains a LLaMA-like model: BPE, split digits, byte fallback, text as it is, unk 0, bos 1, eos 2, no padding id.

  Args:
    lines: texts; newlines inside a text are fine (a newline is a byte token, and pieces never cross one).
    vocab_size: ids in all, the 256 bytes and 3 control ids included.
    user_symbols: strings that are always one token, spaces written as U+2581.

  Returns:
    The model file's bytes; the same lines give the same bytes.

  Raises:
    SphinxError: the corpus cannot fill, or does not fit, the vocabulary.
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
  except Exception as error:  # sentencepiece raises bare RuntimeError
    raise errors.make(
      'tokenizer training',
      f'vocab_size={vocab_size} ({str(error).strip()})',
      'a corpus that fills the vocabulary and whose characters fit in it',
      'change vocab_size or give more text',
    ) from error
  return model.getvalue()
