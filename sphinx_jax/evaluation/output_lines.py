"""The output for a user's items: a JSON line for each, in their order, with its answer's labels."""

from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from etils import epath

from sphinx_jax.core import files
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.evaluation import labels, predictions
from sphinx_jax.evaluation.items import Items

ERRORS = 'errors'
_CHUNK = 256  # Lines made at once, by threads, which read the sizes of images.


def write(
  output: files.Path,
  items: Items,
  folder: predictions.Path,
  schema: str,
  form: str,
  upright: bool,
) -> Counter[str]:
  """Writes the lines, one after another.

  A line has `image` or `images` as given, `id` and `question_id` of a JSONL line, `prompt`,
  `answer`; with labels also `width` and `height` of the stored image and `boxes` or `points`. An
  item that could not be asked, or has no image to label, has `error`.

  Args:
    output: the file, written atomically.
    items: the items.
    folder: folder of their answers.
    schema: a key of `labels.SCHEMAS`.
    form: as in `labels.read`.
    upright: as in `labels.read`.

  Returns:
    The number of `ERRORS`, and what `labels.read` counts.

  Raises:
    SphinxError: it cannot be written.
  """
  answers = predictions.Answers(folder, items.name)
  total: Counter[str] = Counter()

  def line_of(index: int, answered: Mapping[str, Any]) -> tuple[dict[str, Any], Counter[str]]:
    line = {**answered['item'], 'prompt': answered['prompt'], 'answer': answered['answer']}
    counts: Counter[str] = Counter()
    if 'skipped' in answered:
      line['error'] = f'{answered["skipped"]}: {answered["message"]}'
    elif labels.SCHEMAS[schema] is not None:
      try:
        frame = _frame(items, index)
        found = labels.read(line['answer'], schema, frame, upright, form, counts)
        line |= {'width': frame.width, 'height': frame.height, schema: found}
      except BadExample as error:
        line['error'] = f'{error.reason}: {error.message}'
    counts[ERRORS] += 'error' in line
    return line, counts

  with (
    files.open_atomic(output) as file,
    ThreadPoolExecutor() as pool,
    Progress(total=len(items.ids), what=str(output), unit='lines') as progress,
  ):
    for begin in range(0, len(items.ids), _CHUNK):
      ids = items.ids[begin : begin + _CHUNK]
      indices = range(begin, begin + len(ids))
      for line, counts in pool.map(line_of, indices, [answers[key] for key in ids]):
        file.write(predictions.to_line(line))
        total += counts
      progress.update(len(ids))
  return total


def _frame(items: Items, index: int) -> images.Frame:
  """Returns the frame of an item's image. Raises BadExample unless it has one."""
  question = items.questions[index]
  if len(question.images) != 1:
    raise BadExample(
      'not one image', f'{question.location}: labels are read from answers about one image'
    )
  try:
    return images.frame(question.images[0])
  except OSError as error:
    raise BadExample('missing image', f'{question.location}: {error}') from error


def read(output: files.Path) -> Iterator[dict[str, Any]]:
  """Yields the lines of an output."""
  with epath.Path(output).open('rb') as file:
    for line in files.scan_jsonl(file, f"'{output}'"):
      yield line.value
