"""Runs an app over HTTP with uvicorn, on this host or at an address, until SIGTERM."""

import asyncio
import contextlib
import resource
import signal
import socket

import fastapi
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from sphinx_jax.core import errors

# Open connections; while there are more, every request gets 503. The queue of requests is bounded
# much earlier, with 429, so this protects the file descriptors.
_CONNECTIONS = 16384
_OTHER_FILES = 512  # Of weights, logs and the like.
_BACKLOG = 4096  # Connections that the system holds until they are accepted.
_HEADER_SECONDS = 20.0  # In which a client must have sent the head of a request.


class _TimedProtocol(H11Protocol):
  """Closes connections whose next request does not begin, which uvicorn would keep for ever."""

  def connection_made(self, transport: asyncio.Transport) -> None:
    super().connection_made(transport)
    self.loop.call_later(_HEADER_SECONDS, self._look, None)

  def _look(self, seen: object) -> None:
    if self.transport.is_closing():
      return
    waits = self.cycle is None or self.cycle.response_complete
    if waits and self.cycle is seen:
      self.transport.close()
    else:
      self.loop.call_later(_HEADER_SECONDS, self._look, self.cycle if waits else self)


def bind(host: str, port: int) -> socket.socket:
  """Takes a port, at which nobody is answered yet.

  Args:
    host: address to listen at.
    port: 0 takes a free one.

  Raises:
    SphinxError: the port is taken, or the address is not of this machine.
  """
  found = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
  found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
  try:
    found.bind((host, port))
  except OSError as error:
    found.close()
    raise errors.make(
      'serve',
      f'--host={host} --port={port}, {error.strerror}',
      'a free port of this machine',
      'choose another one',
    ) from error
  return found


def make_server(app: fastapi.FastAPI, drain: int) -> uvicorn.Server:
  """A server that is not started.

  Args:
    app: from `api.make_app`, or another one that it is mounted in.
    drain: seconds in which requests may end after SIGTERM.
  """
  config = uvicorn.Config(
    app,
    http=_TimedProtocol,
    ws='none',
    lifespan='off',
    log_level='warning',
    access_log=False,
    server_header=False,
    limit_concurrency=_most_connections(),
    backlog=_BACKLOG,
    timeout_graceful_shutdown=drain,
  )
  return uvicorn.Server(config)


def _most_connections() -> int:
  """Connections, with a file descriptor each, that the limit of the system has room for."""
  _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  if hard == resource.RLIM_INFINITY:
    return _CONNECTIONS
  return min(_CONNECTIONS, max(hard - _OTHER_FILES, hard // 2))


def run(server: uvicorn.Server, listener: socket.socket) -> None:
  """Serves until SIGTERM or Ctrl-C, then lets requests end."""
  with contextlib.suppress(OSError, ValueError):  # One file for each connection.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
  # Uvicorn raises the signal again when it has drained. The engine is stopped then, in order.
  before = signal.signal(signal.SIGTERM, lambda *_: None)
  try:
    server.run([listener])
  finally:
    signal.signal(signal.SIGTERM, before)
