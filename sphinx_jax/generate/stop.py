"""Seeing a stop text on the device: an automaton over the characters of each token's text.

A stop text can be split into tokens in several ways ("\\n###" is one piece, or four). Following characters instead of
ids makes the check exact for every tokenizer, and it costs one small table lookup a step.
"""

import numpy as np


def continuation(tokenizer, ids) -> str:
  """The text that `ids` add to a sentence; decoding them alone would drop a leading space."""
  anchor = tokenizer.encode('a')[-1:]
  return tokenizer.decode([*anchor, *ids])[len(tokenizer.decode(anchor)) :]


def piece_texts(tokenizer, size) -> list[str]:
  """The text that each of `size` token ids adds to a sentence; ids without text give ''."""
  texts = [continuation(tokenizer, [i]) for i in range(min(size, tokenizer.vocab_size))]
  return texts + [''] * (size - len(texts))


def automaton(stop, texts):
  """Transition table of the search for `stop` in a text that arrives token by token.

  State s means: the text so far ends with the first s characters of `stop`; the last state is reached when `stop`
  was seen and is never left.

  Args:
    stop: str, not empty.
    texts: list[str], what each token id adds to the text.
  Returns:
    int32[len(stop) + 1, len(texts)]: next state for (state, token id).
  """
  full = len(stop)

  def advance(state, text):
    for character in text:
      if state == full:
        break
      seen = stop[:state] + character
      state = next(n for n in range(len(seen), -1, -1) if seen.endswith(stop[:n]))
    return state

  return np.array([[advance(state, text) for text in texts] for state in range(full + 1)], np.int32)
