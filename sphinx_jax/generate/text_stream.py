"""The text of an answer while its tokens arrive.

A character may be several byte tokens, a stop text may be several tokens, and the space between two
words belongs to the second one. So what is given out lags behind the tokens: the pieces of a stream
are those of the text that all its tokens have together.
"""

from collections.abc import Sequence

from sphinx_jax.data.dialog import Template
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.generate import decode

_INCOMPLETE = '\ufffd'  # The text of bytes that are no whole character yet.


class TextStream:
  """Turns tokens into pieces of text, which together are the answer without space around it.

  The answer ends where the first stop text is complete, and does not contain it.

  Args:
    tokenizer: of the model.
    template: its end tokens and its stop text end the answer.
    stops: further stop texts, not empty.

  Attributes:
    end_ids: the tokens that end an answer.
    text: what was given out so far.
    count: tokens that were read, the one included that ended the answer.
    is_stopped: whether an end token or a stop text has come. Later tokens are not read.
  """

  def __init__(self, tokenizer: Tokenizer, template: Template, stops: Sequence[str] = ()) -> None:
    self._tokenizer = tokenizer
    self.end_ids = frozenset(decode.end_ids(template, tokenizer))
    self._stops = [*stops, *([template.stop] if template.stop else [])]
    self._longest = max(map(len, self._stops), default=0)
    self._ids: list[int] = []
    # Text is decoded in a window of the ids, and what the window had before is left out.
    self._begin = self._complete = 0
    self._word = tokenizer.encode('a')[-1:]  # Has a space in front.
    self._is_first: dict[int, bool] = {}
    self._raw, self._cut = '', None
    self.text = ''
    self.count = 0
    self.is_stopped = False

  def push(self, ids: Sequence[int]) -> str:
    """Reads the next tokens; returns the next piece of text, often ''."""
    for i in ids:
      if self.is_stopped:
        break
      self.count += 1
      if i in self.end_ids:
        self.is_stopped = True
      else:
        self._ids.append(int(i))
    self._read(is_last=False)
    return self._give_out(self._held())

  def finish(self) -> str:
    """Returns the last piece of text, when no token will come."""
    self._read(is_last=True)
    return self._give_out(0)

  @property
  def length(self) -> int:
    """Characters of the text that all tokens so far have, with what is held back."""
    return len(self._raw)

  @property
  def settled(self) -> int:
    """Those in front of a stop text, and of what may be the beginning of one."""
    return self._end - self._held()

  @property
  def _end(self) -> int:
    return len(self._raw) if self._cut is None else self._cut

  def _read(self, is_last: bool) -> None:
    """Decodes the tokens that have come."""
    new = self._tokenizer.decode(self._ids[self._begin :])
    if self._cut is not None or (new.endswith(_INCOMPLETE) and not is_last):
      return
    old = self._tokenizer.decode(self._ids[self._begin : self._complete])
    before = self._raw
    self._raw += new[len(old) :]
    self._find_stop(max(len(before) - self._longest + 1, 0))
    if self._cut is not None:
      self._count_to_stop(before, len(old))
      return
    begin = self._complete
    while begin > self._begin and not (begin < len(self._ids) and self._may_be_first(begin)):
      begin -= 1
    self._begin, self._complete = begin, len(self._ids)

  def _may_be_first(self, at: int) -> bool:
    """Whether the window may begin with this token: the one behind it keeps its space.

    It does not behind a byte or an added token.
    """
    i = self._ids[at]
    if i not in self._is_first:
      decode_ids = self._tokenizer.decode
      self._is_first[i] = decode_ids([i, *self._word]) == f'{decode_ids([i])} a'
    return self._is_first[i]

  def _find_stop(self, begin: int) -> None:
    """Cuts the text at the stop text that was complete first, whatever tokens came at once."""
    found = [(self._raw.find(stop, begin), len(stop)) for stop in self._stops]
    ends = [(at + length, at) for at, length in found if at >= 0]
    if ends:
      self._cut, self.is_stopped = min(ends)[1], True

  def _count_to_stop(self, before: str, known: int) -> None:
    """Leaves the tokens out that came at once with the one that completed the stop text.

    Args:
      before: the text before they came.
      known: characters of it that are in the window.
    """
    for end in range(self._complete + 1, len(self._ids)):
      text = before + self._tokenizer.decode(self._ids[self._begin : end])[known:]
      if any(stop in text for stop in self._stops):
        self.count = end
        break

  def _held(self) -> int:
    """Characters at the end that may be the beginning of a stop text."""
    if self._cut is not None:
      return 0
    most = min(self._longest - 1, len(self._raw))
    for count in range(most, 0, -1):
      suffix = self._raw[-count:]
      if any(len(stop) > count and stop.startswith(suffix) for stop in self._stops):
        return count
    return 0

  def _give_out(self, held: int) -> str:
    """The text up to `held` characters from its end, without what was given out and space."""
    answer = self._raw[: self._end - held].strip()
    piece = answer[len(self.text) :]
    self.text = answer
    return piece
