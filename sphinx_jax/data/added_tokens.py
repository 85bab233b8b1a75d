"""Tokenizer files with further tokens, which every text that has them becomes.

The new tokens are part of the file: a `tokenizer.model` gets them as pieces, a `tokenizer.json` as
added tokens, so that other projects read them, too.
"""

from collections.abc import Sequence

from sphinx_jax.core import errors
from sphinx_jax.core.text import is_unicode
from sphinx_jax.data.tokenizer import Tokenizer


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
