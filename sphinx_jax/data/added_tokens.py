"""Tokenizer files with further tokens, which every text that has them becomes.

The new tokens are part of the file: a `tokenizer.model` gets them as pieces, a `tokenizer.json` as
added tokens, so that other projects read them, too.
"""

import json
from collections.abc import Sequence

from sphinx_jax.core import errors, files, paths
from sphinx_jax.core.text import is_unicode
from sphinx_jax.data.tokenizer import Tokenizer

_FILES = '.txt', '.json'  # Ends of names of files with tokens.


def read(entries: Sequence[str]) -> tuple[str, ...]:
  """The tokens of the setting `tokenizer_add`.

  Args:
    entries: tokens, and files of them: one a line of a .txt, or the list in a .json.

  Raises:
    SphinxError: a file cannot be read, or has no tokens.
  """
  tokens: list[str] = []
  for entry in entries:
    tokens += _read_file(entry) if entry.endswith(_FILES) else [entry]
  return tuple(tokens)


def _read_file(path: str) -> list[str]:
  place = paths.expand(path)
  who, is_json = f"tokenizer_add, file '{path}'", path.endswith('.json')
  expected = 'a JSON list of tokens' if is_json else 'UTF-8 text with one token a line'
  try:
    text = files.read_bytes(place).decode('utf-8-sig')
    tokens = json.loads(text) if is_json else list(filter(None, map(str.strip, text.splitlines())))
  except (OSError, ValueError, RecursionError) as error:
    got = getattr(error, 'strerror', None) or str(error)
    raise errors.make(who, got, expected, 'check the path and the file') from error
  if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
    raise errors.make(who, 'other JSON', expected, 'correct it')
  if not tokens:
    raise errors.make(who, 'no token', expected, 'give another file')
  return tokens


def add(tokenizer: Tokenizer, tokens: Sequence[str]) -> Tokenizer:
  """The tokenizer with further tokens, whose ids are those behind its own.

  Special tokens beside a `tokenizer.model` become a part of it, with the ids that they have.

  Args:
    tokenizer: the tokenizer.
    tokens: texts without spaces; none: the tokenizer stays as it is.

  Raises:
    SphinxError: a token is empty, has spaces, is there twice or is one of the tokenizer.
  """
  if not tokens:
    return tokenizer
  known = set(tokenizer.pieces().values())
  for number, token in enumerate(tokens):
    if not token or not is_unicode(token) or any(c.isspace() or c == '\u2581' for c in token):
      raise errors.make('tokenizer_add', f'{token!a}', 'characters that are no spaces', 'change it')
    if token in known or token in tokens[:number]:
      problem = 'which the tokenizer has' if token in known else 'which is there twice'
      raise errors.make(
        'tokenizer_add', f"'{token}', {problem}", 'tokens that are new', 'leave it out'
      )
  is_json = tokenizer.model_bytes.lstrip()[:1] == b'{'
  grow = _grow_json if is_json else _grow_pieces
  return Tokenizer(grow(tokenizer, tokens), ids=tokenizer.ids)


def _grow_pieces(tokenizer: Tokenizer, tokens: Sequence[str]) -> bytes:
  """A `tokenizer.model` whose last pieces are the special tokens beside it, then the new tokens."""
  # Imported here: it is slow, and few runs add tokens.
  from sentencepiece import sentencepiece_model_pb2

  model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model_bytes)
  kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
  specials = {i: text for text, i in tokenizer.added.items()}
  for i in range(len(model.pieces), tokenizer.vocab_size):
    if i in specials:
      model.pieces.add(piece=specials[i], score=0, type=kinds.CONTROL)
    else:
      model.pieces.add(piece=f'<unused_{i}>', score=0, type=kinds.UNUSED)
  for token in tokens:
    model.pieces.add(piece=token, score=0, type=kinds.USER_DEFINED)
  model.trainer_spec.vocab_size = len(model.pieces)
  return model.SerializeToString(deterministic=True)


def _grow_json(tokenizer: Tokenizer, tokens: Sequence[str]) -> bytes:
  """A `tokenizer.json` with the special tokens beside it and the new tokens as added tokens."""
  import tokenizers  # Imported here, as most models have a tokenizer.model.

  model = tokenizers.Tokenizer.from_buffer(tokenizer.model_bytes)
  specials = sorted(tokenizer.added, key=tokenizer.added.get)
  model.add_special_tokens([tokenizers.AddedToken(text, normalized=False) for text in specials])
  model.add_tokens([tokenizers.AddedToken(token, normalized=False) for token in tokens])
  return model.to_str().encode()
