"""The dialog template and its loss mask.

The text of a dialog is the system prompt and a blank line, then "### Human: question\\n" and
"### Assistant: answer\\n" in turns, and "###" at the end. Only answers are trained on: each answer,
the space before it, and the "\\n###" after it. Source: docs/official_sphinx.md, "Conversation".
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

# (question, answer). A question of None leaves out the human's line. An answer of None is not given
# yet.
Turn = tuple[str | None, str | None]


@dataclasses.dataclass(frozen=True)
class Template:
  """Renders turns like official SPHINX.

  Attributes:
    system: text before the first turn. If it is empty, the dialog begins with "###".
    stop: text that ends an answer.
  """

  system: str = SYSTEM
  stop: str = dataclasses.field(default='\n###', init=False)

  def render(self, turns: Sequence[Turn], open_ended: bool = False) -> str:
    """Returns the dialog as one text.

    Args:
      turns: (question, answer) pairs.
      open_ended: end with "Assistant:" instead of the last turn's answer.
    """
    text, _ = self._render_and_mark(turns, open_ended)
    return text

  def encode(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> tuple[list[int], np.ndarray]:
    """Tokenizes a dialog to train on.

    The text is encoded as a whole, and tokens are matched to answers by character. The official
    code instead searches for the ids of an answer after those of the answer before, so it labels an
    earlier question that has the same text (see tests/data/test_dialog.py).

    Returns:
      ids: BOS, the text, EOS.
      weights: float32[len(ids)], 1 for labels, else 0.
    """
    text, answers = self._render_and_mark(turns)
    ids, begins = tokenizer.encode_begins(text)
    is_label = np.zeros(len(ids), bool)
    for begin, end in answers:
      is_label |= (begins >= begin) & (begins < end)
    weights = np.zeros(len(ids) + 2, np.float32)
    weights[1:-1] = is_label
    return [tokenizer.bos, *ids, tokenizer.eos], weights

  def prompt(self, turns: Sequence[Turn], tokenizer: Tokenizer) -> list[int]:
    """Returns the ids of a prompt that asks for the last turn's answer, BOS first."""
    return tokenizer.encode(self.render(turns, open_ended=True), bos=True)

  def _render_and_mark(
    self, turns: Sequence[Turn], open_ended: bool = False
  ) -> tuple[str, list[tuple[int, int]]]:
    """Returns the text, and the characters [begin, end) of each part that is trained on."""
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
