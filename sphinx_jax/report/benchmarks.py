"""The page of benchmarks: a table of scores beside published ones, and the best and worst answers of each, drawn.

    write(folder, run, results, rows) -> folder/report.html

It reads folder/cases/NAME.json and the pictures named there (`evaluate.cases`), so it can be written again at any time.
"""

import base64
import io
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from PIL import Image

from sphinx_jax.report import draw, page


def write(
  folder: os.PathLike, run: str, results: Mapping[str, Mapping], rows: Sequence[Mapping[str, str]]
) -> epath.Path:
  """Writes the page, with all its pictures inside.

  Args:
    folder: where `cases/` is, and the page is written.
    run: whose answers these are.
    results: {benchmark: {'metric', 'variant', 'note', 'questions', 'skipped', 'official', ...}}.
    rows: cells of the table: {'benchmark', 'metric', 'score', 'published', 'questions', 'skipped'}.

  Returns:
    Path of the page.
  """
  folder = epath.Path(folder)
  first = {name: next(row for row in rows if row['benchmark'] == name) for name in results}
  cases = {name: json.loads((folder / 'cases' / f'{name}.json').read_text()) for name in results}
  drawn = {
    name: {
      group: [_drawn(folder, case) for case in found] for group, found in groups.items() if found
    }
    for name, groups in cases.items()
  }
  file = folder / 'report.html'
  file.write_text(
    page.template('benchmarks.html').render(
      run=run,
      results=results,
      first=first,
      rows=rows,
      cases=drawn,
      skipped=sum(result['skipped'] for result in results.values()),
    )
  )
  return file


def _drawn(folder: epath.Path, case: Mapping) -> dict:
  """A case with its panels: answer and truth on the picture where one of them has places, or else the picture alone."""
  panels = {}
  if case['image'] is not None:
    picture = np.asarray(
      Image.open(io.BytesIO((folder / case['image']).read_bytes())).convert('RGB')
    )
    texts = {'answer': case['answer'], 'truth': case['truth']}
    if not any(map(draw.is_drawable, texts.values())):
      texts = {'': ''}
    panels = {
      name: _inline(draw.draw(picture, text, asked=case['prompt'])) for name, text in texts.items()
    }
  return {**case, 'panels': panels}


def _inline(image: Image.Image) -> str:
  buffer = io.BytesIO()
  image.save(
    buffer, 'JPEG', quality=85
  )  # Hundreds of photographs as PNG would make a page of 100 MB.
  return 'data:image/jpeg;base64,' + base64.b64encode(buffer.getvalue()).decode()
