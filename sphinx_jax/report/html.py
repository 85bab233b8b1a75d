"""What the pages share: their templates, and images inside the page."""

import base64

import jinja2


def template(name: str) -> jinja2.Template:
  """Returns a template by the name of its file in this package."""
  environment = jinja2.Environment(
    loader=jinja2.PackageLoader('sphinx_jax.report', ''),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=jinja2.StrictUndefined,
  )
  return environment.get_template(name)


def data_url(data: bytes, form: str) -> str:
  """Returns an encoded image as a URL. `form` is 'png' or 'jpeg'."""
  return f'data:image/{form};base64,{base64.b64encode(data).decode()}'
