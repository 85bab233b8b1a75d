"""The report of benchmarks: a table of scores, and the best and worst answers, drawn.

The page is made from folder/cases/NAME.json and its images (`evaluation/cases.py`), so it can be
written again at any time.
"""

import io
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from PIL import Image

from sphinx_jax.core import files
from sphinx_jax.report import drawing, html


def write(
  folder: os.PathLike,
  run: str,
  results: Mapping[str, Mapping[str, Any]],
  rows: Sequence[Mapping[str, str]],
) -> epath.Path:
  """Writes folder/report.html, with all its images inside.

  Args:
    folder: folder of the predictions, with `cases/`.
    run: text that identifies the model.
    results: {benchmark: {'metric', 'variant', 'note', 'questions', 'skipped', 'official', ...}}.
    rows: rows of the table: {'benchmark', 'metric', 'score', 'published', 'questions', 'skipped'}.

  Returns:
    The path of the page.
  """
  folder = epath.Path(folder)
  main_rows = {name: next(row for row in rows if row['benchmark'] == name) for name in results}
  drawn_cases = {}
  for name in results:
    groups = json.loads((folder / 'cases' / f'{name}.json').read_text())
    drawn_cases[name] = {
      group: [_draw_case(folder, case) for case in cases]
      for group, cases in groups.items()
      if cases
    }
  file = folder / 'report.html'
  files.write_atomic(
    file,
    html.page(
      'benchmark_page.html',
      run=run,
      results=results,
      first=main_rows,
      rows=rows,
      cases=drawn_cases,
      skipped=sum(result['skipped'] for result in results.values()),
    ),
  )
  return file


def _draw_case(folder: epath.Path, case: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a case with 'panels' {name: data URL}.

  The panels show the answer and the truth on the image. If neither has boxes or points, the image
  alone is shown.
  """
  panels = {}
  if case['image'] is not None:
    encoded = (folder / case['image']).read_bytes()
    image = np.asarray(Image.open(io.BytesIO(encoded)).convert('RGB'))
    texts = {'answer': case['answer'], 'truth': case['truth']}
    if not any(drawing.is_drawable(text) for text in texts.values()):
      texts = {'': ''}
    for name, text in texts.items():
      jpeg = _jpeg(drawing.draw_answer(image, text, asked=case['prompt']))
      panels[name] = html.data_url(jpeg, 'jpeg')
  return {**case, 'panels': panels}


def _jpeg(image: Image.Image) -> bytes:
  """Returns an image as a JPEG file. PNGs of hundreds of photographs would be 100 MB."""
  buffer = io.BytesIO()
  image.save(buffer, 'JPEG', quality=85)
  return buffer.getvalue()
