"""A bucket for tests, backed by a local folder.

tensorstore reads it through Google's JSON API, etils.epath through gs:// paths.
"""

import contextlib
import http.server
import json
import os
import pathlib
import threading
import urllib.parse
from collections.abc import Iterator
from unittest import mock

from etils.epath import backend, gpath


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'
  folder: pathlib.Path
  requests: list[str]

  def _answer(self, body: bytes, status: int = 200) -> None:
    self.send_response(status)
    self.send_header('Content-Length', str(len(body)))
    self.send_header('x-goog-generation', '1')
    self.end_headers()
    self.wfile.write(body)

  def _object(self) -> tuple[pathlib.Path, str, dict[str, str]]:
    url = urllib.parse.urlsplit(self.path)
    query = dict(urllib.parse.parse_qsl(url.query))
    bucket, _, rest = url.path.partition('/b/')[2].partition('/o')
    name = urllib.parse.unquote(rest.removeprefix('/')) or query.get('name', '')
    self.requests.append(f'{self.command} {name}')
    return self.folder / bucket, name, query

  def _describe(self, bucket: pathlib.Path, name: str) -> dict[str, str]:
    return {
      'name': name,
      'bucket': bucket.name,
      'generation': '1',
      'metageneration': '1',
      'size': str((bucket / name).stat().st_size),
      'timeCreated': '2026-01-01T00:00:00Z',
      'updated': '2026-01-01T00:00:00Z',
    }

  def do_GET(self) -> None:
    bucket, name, query = self._object()
    if not name:
      names = sorted(str(path.relative_to(bucket)) for path in bucket.rglob('*') if path.is_file())
      first, end = query.get('startOffset', ''), query.get('endOffset', '\U0010ffff')
      items = [
        self._describe(bucket, item)
        for item in names
        if item.startswith(query.get('prefix', '')) and first <= item < end
      ]
      self._answer(json.dumps({'items': items}).encode())
    elif (bucket / name).is_file():
      self._answer((bucket / name).read_bytes())
    else:
      self._answer(b'{}', 404)

  def do_POST(self) -> None:
    bucket, name, _ = self._object()
    (bucket / name).parent.mkdir(parents=True, exist_ok=True)
    (bucket / name).write_bytes(self.rfile.read(int(self.headers['Content-Length'])))
    self._answer(json.dumps(self._describe(bucket, name)).encode())

  def do_DELETE(self) -> None:
    bucket, name, _ = self._object()
    (bucket / name).unlink(missing_ok=True)
    self._answer(b'', 204)

  def log_message(self, *_) -> None:
    pass


def _backend(folder: pathlib.Path) -> backend.Backend:
  """Maps gs:// paths to local files. Folders cannot be renamed, as in a bucket."""

  def local(path):
    if isinstance(path, str) and path.startswith('gs://'):
      return str(folder / path.removeprefix('gs://'))
    return path

  def method(name):
    real = getattr(backend._OsPathBackend, name)
    return lambda self, *paths, **options: real(self, *map(local, paths), **options)

  names = [
    name
    for name in dir(backend._OsPathBackend)
    if not name.startswith('_') and name not in ('rename', 'replace')
  ]
  return type(
    'Bucket',
    (backend._OsPathBackend,),
    {name: method(name) for name in names} | {'rename': None, 'replace': None},
  )()


@contextlib.contextmanager
def bucket(folder: pathlib.Path) -> Iterator[list[str]]:
  """Makes gs://NAME the folder `folder`/NAME, and yields the list of tensorstore's requests."""
  handler = type('Handler', (_Handler,), {'folder': folder, 'requests': []})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  environment = {
    'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{server.server_port}',
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
  }
  local_backend = _backend(folder)
  with (
    mock.patch.dict(os.environ, environment),
    mock.patch.dict(gpath._PREFIX_TO_BACKEND, {'gs': local_backend}),
    mock.patch.object(gpath, '_is_tf_installed', lambda: False),
  ):
    yield handler.requests
  server.shutdown()
