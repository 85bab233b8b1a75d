"""Reads a file from an allowed host, and from no other.

A URL in a request is the client's, but the connection is the server's: it must not reach what only
the server can reach (CWE-918). So the name of a host must be listed. Its addresses are resolved
once, checked, and connected to; a later answer of the name server changes nothing. Redirects are
followed here, each one checked like the first URL. Proxies of the environment are not used.
"""

import ipaddress
import socket
import time
import urllib.parse
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

import httpcore2 as httpcore

from sphinx_jax.serving import api_errors

_REDIRECTS = (301, 302, 303, 307, 308)
_MOST_REDIRECTS = 3
_DEFAULT_PORTS = {'http': 80, 'https': 443}
_OPERATION_SECONDS = 10.0  # To connect, or to wait for the next bytes.

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Allowed:
  """The hosts that may be read from.

  Args:
    entries: `host` for its ports 80 and 443, or `host:port`. A name stands for its public
      addresses; private, loopback and link-local ones must be entries themselves.
  """

  def __init__(self, entries: Collection[str] = ()) -> None:
    self._pairs = set()
    for entry in entries:
      host, port = _split_entry(entry)
      ports = _DEFAULT_PORTS.values() if port is None else (port,)
      self._pairs |= {(host, each) for each in ports}
    self._hosts = {host for host, _ in self._pairs}

  def has(self, host: str, port: int) -> bool:
    """Whether a host is listed by this name, or this address."""
    return (_plain(host), port) in self._pairs

  def may_connect(self, address: Address) -> bool:
    """Whether an address of a listed host is public, or listed itself."""
    if str(address) in self._hosts:
      return True
    for inner in (getattr(address, 'ipv4_mapped', None), getattr(address, 'sixtofour', None)):
      if inner is not None:
        return self.may_connect(inner)
    is_special = address.is_multicast or address.is_reserved or address.is_unspecified
    return address.is_global and not is_special and address not in _TRANSLATED


_TRANSLATED = ipaddress.ip_network('64:ff9b::/96')  # IPv4 addresses behind NAT64, any of them.


class _Target(NamedTuple):
  """A URL that was checked."""

  url: str
  host: str
  port: int


def fetch(url: str, allowed: Allowed, limit: int, seconds: float) -> bytes:
  """Reads a file over http or https.

  Args:
    url: of the client.
    allowed: hosts that may be read from.
    limit: most bytes of the file.
    seconds: in which it must have come.

  Raises:
    ApiError: another scheme or host, an address that is not public, too many redirects or bytes, no
      answer in time, or an answer that is none.
  """
  deadline = time.monotonic() + seconds
  for _ in range(_MOST_REDIRECTS + 1):
    target = _check(url, allowed)
    backend = _CheckedBackend(allowed, deadline)
    try:
      with httpcore.ConnectionPool(network_backend=backend) as pool:
        location, data = _get(pool, target, limit)
    except api_errors.ApiError:
      raise
    except Exception as error:  # A foreign server can fail in any way.
      reason = str(error) or type(error).__name__
      raise _error(target.host, f'no answer ({reason:.200})', 'a file') from error
    if location is None:
      return data
    url = urllib.parse.urljoin(target.url, location)
  raise _error(target.host, 'redirects without end', f'at most {_MOST_REDIRECTS}')


def _get(pool: httpcore.ConnectionPool, target: _Target, limit: int) -> tuple[str | None, bytes]:
  """One request: the address of a redirect, or the file."""
  timeout = dict.fromkeys(('connect', 'read', 'write', 'pool'), _OPERATION_SECONDS)
  headers = {'User-Agent': 'sphinx_jax', 'Accept': 'image/*', 'Accept-Encoding': 'identity'}
  with pool.stream('GET', target.url, headers=headers, extensions={'timeout': timeout}) as response:
    if response.status in _REDIRECTS:
      found = [value for name, value in response.headers if name.lower() == b'location']
      if found:
        return found[0].decode('latin-1'), b''
    if response.status != 200:
      raise _error(target.host, f'status {response.status}', 'status 200')
    data = bytearray()
    for chunk in response.iter_stream():
      data += chunk
      if len(data) > limit:
        raise _error(target.host, f'more than {limit} bytes', 'a smaller file')
    return None, bytes(data)


def _check(url: str, allowed: Allowed) -> _Target:
  """Raises ApiError for a URL of another scheme or host. Nothing was resolved yet."""
  try:
    if not url.isascii() or any(c <= ' ' or c in '\\\x7f' for c in url):
      raise ValueError('characters that no URL has')
    parts = urllib.parse.urlsplit(url)
    host, port = parts.hostname, parts.port
  except ValueError as error:
    raise _error(ascii(url[:80]), str(error), 'an http or https URL') from error
  if parts.scheme not in _DEFAULT_PORTS or not host:
    raise _error(ascii(url[:80]), 'another scheme', 'a data URL, or http and https')
  if parts.username is not None or parts.password is not None:
    raise _error(ascii(url[:80]), 'a name or a password in it', 'a URL without them')
  port = _DEFAULT_PORTS[parts.scheme] if port is None else port
  if not allowed.has(host, port):
    raise _error(
      f'{ascii(host)[1:-1]}:{port}', 'a host that is not listed', 'one that the server allows'
    )
  path = parts.path or '/'
  name = f'[{host}]' if ':' in host else host
  query = f'?{parts.query}' if parts.query else ''
  return _Target(f'{parts.scheme}://{name}:{port}{path}{query}', host, port)


def _error(who: str, got: str, expected: str) -> api_errors.ApiError:
  return api_errors.make(
    f'image_url {who}', got, expected, 'send the image as a data URL, or see --allow_hosts'
  )


class _CheckedBackend(httpcore.NetworkBackend):
  """Connects to addresses that were checked, until a deadline."""

  def __init__(self, allowed: Allowed, deadline: float) -> None:
    self._allowed, self._deadline = allowed, deadline

  def connect_tcp(
    self,
    host: str,
    port: int,
    timeout: float | None = None,
    local_address: str | None = None,
    socket_options: Iterable[Any] | None = None,
  ) -> httpcore.NetworkStream:
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    # Names of interfaces behind '%' are of link-local addresses.
    addresses = [ipaddress.ip_address(entry[4][0].partition('%')[0]) for entry in found]
    if not addresses or not all(map(self._allowed.may_connect, addresses)):
      raise _error(host, 'an address that is not public', 'a public one, or one that is listed')
    stream = httpcore.SyncBackend().connect_tcp(
      str(addresses[0]), port, _left(self._deadline, timeout), local_address, socket_options
    )
    return _TimedStream(stream, self._deadline)


class _TimedStream(httpcore.NetworkStream):
  """A stream that ends at a deadline, even if a byte comes now and then."""

  def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
    self._stream, self._deadline = stream, deadline

  def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
    return self._stream.read(max_bytes, _left(self._deadline, timeout))

  def write(self, buffer: bytes, timeout: float | None = None) -> None:
    self._stream.write(buffer, _left(self._deadline, timeout))

  def close(self) -> None:
    self._stream.close()

  def start_tls(
    self, ssl_context: Any, server_hostname: str | None = None, timeout: float | None = None
  ) -> httpcore.NetworkStream:
    left = _left(self._deadline, timeout)
    return _TimedStream(self._stream.start_tls(ssl_context, server_hostname, left), self._deadline)

  def get_extra_info(self, info: str) -> Any:
    return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
  """Seconds that an operation may take."""
  left = deadline - time.monotonic()
  if left <= 0:
    raise httpcore.ReadTimeout('not in time')
  return left if timeout is None else min(left, timeout)


def _split_entry(entry: str) -> tuple[str, int | None]:
  """Host and port of an entry of --allow_hosts.

  Raises:
    SphinxError: it is not one.
  """
  bracketed = f'[{entry}]' if entry.count(':') > 1 and '[' not in entry else entry
  try:
    parts = urllib.parse.urlsplit(f'//{bracketed}')
    if not parts.hostname or parts.netloc != bracketed or '@' in bracketed:
      raise ValueError
    return _plain(parts.hostname), parts.port
  except ValueError:
    raise api_errors.make(
      '--allow_hosts', f"'{entry}'", 'HOST or HOST:PORT', 'correct it'
    ) from None


def _plain(host: str) -> str:
  """The form in which hosts are compared."""
  host = host.lower().rstrip('.')
  try:
    return str(ipaddress.ip_address(host))
  except ValueError:
    return host
