"""A conversation about one image: the turns so far, and the image's tokens computed once for all of them."""


class Conversation:
  """Asks one question after the other about one image.

  Args:
    generator: `generate.decode.Generator`.
    image: uint8[Y, X, 3] of any size, or None to talk about text only.

  Attributes:
    turns: [(question, answer), ...] so far; `data.dialog.Template` makes the prompt from them.
  """

  def __init__(self, generator, image=None):
    self._generator = generator
    self._visual = None if image is None else generator.encode([image])
    self.turns = []

  def ask(self, question: str, **sampling) -> str:
    """The answer to `question`, given all turns before it; `sampling` as in `Generator.answers`."""
    prompt = [*self.turns, (question, None)]
    answer = self._generator.answers([prompt], visual=self._visual, **sampling)[0]
    self.turns.append((question, answer))
    return answer

  def forget(self) -> None:
    """Starts over about the same image."""
    self.turns.clear()
