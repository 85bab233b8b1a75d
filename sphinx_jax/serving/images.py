"""Images of requests: from a URL to what the engine encodes, within limits."""

import base64
import binascii
import hashlib
import re
import secrets
from typing import NamedTuple

from sphinx_jax.core import file_forms
from sphinx_jax.data import images as image_lib, record
from sphinx_jax.generate.model import Model
from sphinx_jax.serving import api_errors, fetch
from sphinx_jax.serving.engine import Image, VisualCache

_DATA_URL = re.compile(r'data:(?P<type>[\w.+/-]{0,100})(?P<options>(;[\w=.+-]{1,100}){0,4}),', re.A)


class Limits(NamedTuple):
  """Limits of an image.

  Attributes:
    count: most images of a request.
    file_bytes: most bytes of its file.
    pixels: most pixels.
    seconds: in which a host must have sent it.
  """

  count: int = 16
  file_bytes: int = 20 << 20
  pixels: int = 1 << 25
  seconds: float = 15.0


class Read(NamedTuple):
  """An image, and the frame of its file."""

  image: Image
  frame: image_lib.Frame


class Reader:
  """Reads the images of requests, in any thread.

  Args:
    model: that will see them.
    cache: visual tokens that are kept. An image that has them is not decoded.
    allowed: hosts that images may be read from.
    limits: of an image.
  """

  def __init__(
    self, model: Model, cache: VisualCache, allowed: fetch.Allowed, limits: Limits
  ) -> None:
    self._model, self._cache, self._allowed, self.limits = model, cache, allowed, limits
    # With a key of its own, so that nobody can make two files of one hash for this server.
    self._key = secrets.token_bytes(16)

  def read(self, url: str) -> Read:
    """Reads the image of a data URL, or of an allowed host.

    Raises:
      ApiError: it cannot be had, is no image, or is over a limit.
    """
    data = self._data(url)
    form = file_forms.name(data)
    # Pillow reads dozens more, some with the help of other programs.
    if form not in file_forms.API_IMAGES:
      raise api_errors.make(
        'image',
        form or f'{len(data)} bytes that are no image',
        ', '.join(file_forms.API_IMAGES),
        'convert it',
      )
    try:
      frame = image_lib.frame(data)
      if frame.width * frame.height > self.limits.pixels:
        raise api_errors.make(
          'image',
          f'{frame.width} x {frame.height} pixels',
          f'at most {self.limits.pixels}',
          'resize it',
        )
      digest = hashlib.blake2b(data, key=self._key, digest_size=16).digest()
      visual = self._cache.get(digest)
      slots = self._model.read_image(data) if visual is None else None
    except record.BadExample as error:
      raise api_errors.make('image', error.message, 'a readable image', 'check the file') from error
    return Read(Image(digest, slots, visual), frame)

  def _data(self, url: str) -> bytes:
    if url[:5].lower() != 'data:':
      return fetch.fetch(url, self._allowed, self.limits.file_bytes, self.limits.seconds)
    match = _DATA_URL.match(url)
    if match is None or not match['options'].endswith(';base64'):
      raise _bad_data_url(ascii(url[:40]))
    encoded = url[match.end() :]
    if len(encoded) > self.limits.file_bytes * 4 // 3 + 4:
      raise api_errors.make(
        'image', f'{len(encoded)} characters', f'{self.limits.file_bytes} bytes', 'resize it'
      )
    try:
      return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
      raise _bad_data_url(str(error)) from error


def _bad_data_url(got: str) -> api_errors.ApiError:
  return api_errors.make('image_url', got, 'data:image/png;base64,...', 'encode the file in base64')
