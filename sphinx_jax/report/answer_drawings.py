"""Draws the answers to a user's items on their images."""

import io
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from sphinx_jax.core import files, text
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.files import read_image
from sphinx_jax.evaluation import predictions
from sphinx_jax.evaluation.items import Items
from sphinx_jax.evaluation.protocols import box_forms
from sphinx_jax.generate.model import Model
from sphinx_jax.parallel import hosts
from sphinx_jax.report import drawing

_CHUNK = 64  # Images that are drawn at once, by threads.


def write(
  drawings: files.Path, model: Model, items: Items, folder: predictions.Path, form: str
) -> None:
  """Draws the boxes and points of answers about one image. The processes share the images.

  The drawing of an image has the path of the image and the ending .jpg. Several lines of a JSONL
  file may be about one image, so the names of their drawings have a hash of the line. A drawing
  that exists is kept, because answers do not change.

  Args:
    drawings: the folder of the drawings.
    model: what answered.
    items: the items.
    folder: folder of their answers.
    form: as in `labels.read`.

  Raises:
    SphinxError: a drawing cannot be written.
  """
  answers = predictions.Answers(folder, items.name)
  share = range(hosts.process_index(), len(items.ids), hosts.process_count())

  def draw(index: int, answered: Mapping[str, Any]) -> None:
    image = answered['item'].get('image')
    if 'skipped' in answered or image is None:
      return
    place = epath.Path(drawings) / name(items.ids[index], image)
    if place.exists():
      return
    drawn = _draw(model, items, index, answered['answer'], form)
    if drawn is not None:
      place.parent.mkdir(parents=True, exist_ok=True)
      files.write_atomic(place, drawn)

  with (
    files.writing(drawings, 'draw'),
    ThreadPoolExecutor() as pool,
    Progress(total=len(share), what=str(drawings), unit='images') as progress,
  ):
    for begin in range(0, len(share), _CHUNK):
      indices = share[begin : begin + _CHUNK]
      list(pool.map(draw, indices, [answers[items.ids[index]] for index in indices]))
      progress.update(len(indices))


def name(key: str, image: str) -> str:
  """Returns the path of a drawing, relative to the folder of the drawings and below it.

  Args:
    key: id of the item.
    image: path of its image, which may be absolute or lead out of a folder.
  """
  path = Path(image)
  inside = '/'.join(part for part in path.parts if part not in (path.anchor, '..'))
  if inside != key:  # Another item may have the same path.
    inside += f'.{text.digest(key)[:8]}'
  return f'{inside}.jpg'


def _draw(model: Model, items: Items, index: int, answer: str, form: str) -> bytes | None:
  """Returns the drawing of an answer as JPEG; None: there is nothing to draw, or no image."""
  question = items.questions[index]
  if len(question.images) != 1:
    return None
  try:
    data = read_image(question.location, question.images[0])
    pixels = images.decode(data, alpha=model.alpha, upright=model.slot_rule.upright)
  except BadExample:  # It was there when it was asked about.
    return None
  shown = box_forms.native(answer, *pixels.shape[1::-1], form)
  if not drawing.is_drawable(shown):
    return None
  drawn = drawing.draw_answer(pixels, shown, asked=question.prompt, edge=640)
  buffer = io.BytesIO()
  drawn.save(buffer, 'JPEG', quality=90)
  return buffer.getvalue()
