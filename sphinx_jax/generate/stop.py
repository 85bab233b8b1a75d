"""Finds a stop text on the device, with an automaton over the characters of each token's text.

A stop text can be split into tokens in several ways ("\\n###" is one piece, or four). The automaton
follows characters instead of ids, so it is exact for every tokenizer. It costs one small table
lookup a step.
"""

from collections.abc import Sequence

import numpy as np

from sphinx_jax.data.tokenizer import Tokenizer


def continuation(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
  """The text that `ids` add to a sentence. Decoding them alone would drop a leading space."""
  anchor = tokenizer.encode('a')[-1:]
  return tokenizer.decode([*anchor, *ids])[len(tokenizer.decode(anchor)) :]


def piece_texts(tokenizer: Tokenizer, size: int) -> list[str]:
  """The text that each of `size` token ids adds to a sentence; '' for ids without text."""
  texts = [continuation(tokenizer, [i]) for i in range(min(size, tokenizer.vocab_size))]
  return texts + [''] * (size - len(texts))


def automaton(stop: str, texts: Sequence[str]) -> np.ndarray:
  """Transition table of the search for a stop text in a text that arrives token by token.

  In state s the text so far ends with the first s characters of the stop text. The last state means
  that the stop text has occurred, and is never left.

  Args:
    stop: the stop text, not empty.
    texts: the text that each token id adds.

  Returns:
    int32[len(stop) + 1, len(texts)], the next state for (state, token id).
  """
  last = len(stop)

  def advance(state: int, text: str) -> int:
    for character in text:
      if state == last:
        break
      suffix = stop[:state] + character
      state = next(n for n in range(len(suffix), -1, -1) if suffix.endswith(stop[:n]))
    return state

  return np.array([[advance(state, text) for text in texts] for state in range(last + 1)], np.int32)
