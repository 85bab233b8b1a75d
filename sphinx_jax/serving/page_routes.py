"""Adds the page to a server: `/`, and its files, settings and examples below `/page/`.

Nothing of it changes while the server runs, so it is all in memory.
"""

import json
import pathlib
from typing import Any

import fastapi
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from sphinx_jax.core import file_forms
from sphinx_jax.serving import page_settings

_FOLDER = pathlib.Path(__file__).parent / 'page'
_TYPES = {
  '.css': 'text/css',
  '.html': 'text/html',
  '.js': 'text/javascript',
  '.json': 'application/json',
  '.png': 'image/png',
  '.svg': 'image/svg+xml',
}
# The page needs no other host, no inline script and no inline style.
_HEADERS = {
  'Content-Security-Policy': (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
  ),
  'X-Content-Type-Options': 'nosniff',
  'Referrer-Policy': 'no-referrer',
  'Cache-Control': 'no-cache',
}


def add(
  app: fastapi.FastAPI,
  *,
  model: str,
  images: int,
  body_bytes: int,
  max_tokens: int,
  needs_key: bool,
) -> None:
  """Adds the routes of the page.

  Args:
    app: of the API.
    model: its name in the API.
    images: most images of a request.
    body_bytes: most bytes of a request.
    max_tokens: most tokens of an answer.
    needs_key: whether a request must have an API key.
  """
  settings = dict(
    model=model,
    images=images,
    image_types=[f'image/{form.lower()}' for form in file_forms.API_IMAGES],
    # A request with all of its images in base64, and the text, must not be too large.
    image_bytes=body_bytes * 7 // 10 // max(images, 1),
    max_tokens=max_tokens,
    needs_key=needs_key,
  )
  files = _files(settings)

  async def page() -> Response:
    return _response('index.html', files['index.html'])

  async def file(name: str) -> Response:
    if name not in files:
      raise HTTPException(404)
    return _response(name, files[name])

  app.add_api_route('/', page, response_model=None)
  app.add_api_route('/page/{name}', file, response_model=None)


def _response(name: str, content: bytes) -> Response:
  return Response(content, headers=_HEADERS, media_type=_TYPES[pathlib.Path(name).suffix])


def _files(settings: dict[str, Any]) -> dict[str, bytes]:
  """All files by name: those of the folder, the settings, and the images of the examples."""
  examples = {f'example_{i}.png': each for i, each in enumerate(page_settings.examples())}
  settings = dict(
    settings,
    tasks=page_settings.tasks(),
    colors=page_settings.colors(),
    examples=[
      {'task': example.task, 'blanks': example.blanks, 'url': f'page/{name}'}
      for name, example in examples.items()
    ],
  )
  return {
    **{path.name: path.read_bytes() for path in _FOLDER.iterdir()},
    **{name: example.png for name, example in examples.items()},
    'settings.json': json.dumps(settings).encode(),
  }
