"""The dialog template and its loss mask: the only place that knows either.

FACTS "Conversation": the system prompt and a blank line, then "### Human: question\\n" and "### Assistant: answer\\n" in
turn, "###" at the end. Trained are each answer, the space before it, and the "\\n###" after it; nothing else is.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from sphinx_jax.data.tokenizer import Tokenizer

# The official prompt (conversation template "default").
SYSTEM = (
  'A chat between a curious human and an artificial intelligence assistant. '
  "The assistant gives helpful, detailed, and polite answers to the human's questions."
)

# (question, answer): a question of None leaves out the human's line; an answer of None is one yet to be given.
Turn = tuple[str | None, str | None]


@dataclasses.dataclass(frozen=True)
class Template:
  """Renders turns as official SPHINX does.

  Attributes:
    system: text before the first turn; may be empty, and then the dialog begins with "###".
    stop: the text that ends an answer.
  """

  system: str = SYSTEM
  stop: str = dataclasses.field(default='\n###', init=False)

  def render(self, turns: Sequence[Turn], open_ended: bool = False) -> str:
    """The dialog as one text; `open_ended` ends it with "Assistant:" in place of the last turn's answer."""
    return self._pieces(turns, open_ended)[0]

  def encode(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> tuple[list[int], np.ndarray]:
    """A dialog to train on.

    The text is encoded as a whole and tokens are matched to answers by character. (Official code searches the ids of
    an answer after those of the one before, and so labels a question of the same text; see tests/data/test_dialog.py.)

    Returns:
      ids: BOS, the text, EOS.
      weights: float32[len(ids)], 1 where the token is a label.
    """
    text, answers = self._pieces(turns)
    ids, begins = tokenizer.encode_begins(text)
    weights = np.zeros(len(ids) + 2, np.float32)
    for begin, end in answers:
      weights[1:-1][(begins >= begin) & (begins < end)] = 1
    return [tokenizer.bos, *ids, tokenizer.eos], weights

  def prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> list[int]:
    """Ids, BOS included, that ask for the last turn's answer."""
    return tokenizer.encode(self.render(turns, open_ended=True), bos=True)

  def _pieces(
    self, turns: Sequence[Turn], open_ended: bool = False
  ) -> tuple[str, list[tuple[int, int]]]:
    """The text, and the characters [begin, end) of each trained part."""
    text = f'{self.system}\n\n###' if self.system else '###'
    answers = []
    for i, (question, answer) in enumerate(turns):
      if question is not None:
        text += f' Human: {question}{self.stop}'
      text += ' Assistant:'
      if open_ended and i == len(turns) - 1:
        break
      begin = len(text)
      text += f' {answer}{self.stop}'
      answers.append((begin, len(text)))
    return text, answers
