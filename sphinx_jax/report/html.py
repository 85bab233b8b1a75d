"""What the pages share: their templates, and images inside the page."""

import base64
from typing import Any

import jinja2

from sphinx_jax.core import text


def page(name: str, **values: Any) -> str:
  """Returns a page, of a template by the name of its file in this package.

  Values are escaped, so that no text of the data becomes markup.
  """
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('sphinx_jax.report', ''),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return text.printable(environment.get_template(name).render(**values))


def data_url(data: bytes, form: str) -> str:
  """Returns an encoded image as a URL. `form` is 'png' or 'jpeg'."""
  return f'data:image/{form};base64,{base64.b64encode(data).decode()}'
