"""A bucket for tests: files of a folder, served as Google's JSON API for tensorstore, and as gs:// for etils.epath."""

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
  asked: list[str]

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
    self.asked.append(f'{self.command} {name}')
    return self.folder / bucket, name, query

  def _described(self, bucket: pathlib.Path, name: str) -> dict[str, str]:
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
      found = [
        self._described(bucket, each)
        for each in names
        if each.startswith(query.get('prefix', '')) and first <= each < end
      ]
      self._answer(json.dumps({'items': found}).encode())
    elif (bucket / name).is_file():
      self._answer((bucket / name).read_bytes())
    else:
      self._answer(b'{}', 404)

  def do_POST(self) -> None:
    bucket, name, _ = self._object()
    (bucket / name).parent.mkdir(parents=True, exist_ok=True)
    (bucket / name).write_bytes(self.rfile.read(int(self.headers['Content-Length'])))
    self._answer(json.dumps(self._described(bucket, name)).encode())

  def do_DELETE(self) -> None:
    bucket, name, _ = self._object()
    (bucket / name).unlink(missing_ok=True)
    self._answer(b'', 204)

  def log_message(self, *_) -> None:
    pass


def _backend(folder: pathlib.Path) -> backend.Backend:
  """Local files behind gs:// names; a folder cannot be renamed, as in a bucket."""

  def local(path):
    return (
      str(folder / path.removeprefix('gs://'))
      if isinstance(path, str) and path.startswith('gs://')
      else path
    )

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
  """gs://NAME is `folder`/NAME meanwhile; gives the requests that tensorstore makes."""
  handler = type('Handler', (_Handler,), {'folder': folder, 'asked': []})
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  place = {
    'TENSORSTORE_GCS_HTTP_URL': f'http://127.0.0.1:{server.server_port}',
    'GOOGLE_AUTH_TOKEN_FOR_TESTING': 'token',
  }
  found = _backend(folder)
  with (
    mock.patch.dict(os.environ, place),
    mock.patch.dict(gpath._PREFIX_TO_BACKEND, {'gs': found}),
    mock.patch.object(gpath, '_is_tf_installed', lambda: False),
  ):
    yield handler.asked
  server.shutdown()
