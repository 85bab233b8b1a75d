"""What the server reads for a client. All connections are to the loopback address."""

import http.server
import ipaddress
import socket
import threading
import time

import pytest

from sphinx_jax.core import errors
from sphinx_jax.serving import fetch
from sphinx_jax.serving.api_errors import ApiError

PUBLIC = '93.184.216.34'


class Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = 'HTTP/1.1'

  def do_GET(self):
    self.server.asked.append((self.headers['Host'], self.path))
    name = self.path.partition('?')[2] or self.path[1:]
    if self.path.startswith('/to?'):
      self.send_response(302)
      self.send_header('Location', name)
      self.send_header('Content-Length', '0')
      self.end_headers()
    elif name == 'slow':
      self.send_response(200)
      self.send_header('Content-Length', '1000')
      self.end_headers()
      for _ in range(50):
        time.sleep(0.05)
        self.wfile.write(b'a')
    elif name == 'missing':
      self.send_error(404)
    else:
      body = b'a' * int(name)
      self.send_response(200)
      self.send_header('Content-Length', str(len(body)))
      self.end_headers()
      self.wfile.write(body)

  def log_message(self, *_):
    pass


@pytest.fixture
def web():
  server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
  server.asked, server.daemon_threads = [], True
  server.handle_error = lambda *_: None  # Clients leave early.
  thread = threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.01})
  thread.start()
  yield server
  server.shutdown()
  thread.join()
  server.server_close()


@pytest.fixture
def names(monkeypatch):
  """Host name -> addresses; the others cannot be resolved. Records what is resolved."""
  table, asked = {}, []

  def resolve(host, port, *_, **__):
    asked.append(host)
    addresses = table.get(host, [host])
    addresses = addresses.pop(0) if isinstance(addresses[0], list) else addresses
    return [(socket.AF_INET, socket.SOCK_STREAM, 6, '', (a, port)) for a in addresses]

  monkeypatch.setattr(socket, 'getaddrinfo', resolve)
  table['asked'] = asked
  return table


def read(web, path, hosts=('127.0.0.1',), name='127.0.0.1', limit=1000, seconds=5.0):
  port = web.server_port
  allowed = fetch.Allowed([f'{host}:{port}' for host in hosts])
  return fetch.fetch(f'http://{name}:{port}/{path}', allowed, limit, seconds)


def test_a_listed_address_is_read(web, names):
  assert read(web, '10') == b'a' * 10
  assert read(web, 'to?7') == b'a' * 7  # A redirect on the same host.


def test_a_name_is_resolved_once_and_its_own_name_is_sent(web, names):
  """Another answer of the name server, a moment later, would lead elsewhere."""
  names['pictures.test'] = [['127.0.0.1'], ['10.0.0.1']]
  assert read(web, '10', ('pictures.test', '127.0.0.1'), 'pictures.test') == b'a' * 10
  assert names['asked'].count('pictures.test') == 1
  assert web.asked == [(f'pictures.test:{web.server_port}', '/10')]


@pytest.mark.parametrize(
  'address',
  ['127.0.0.1', '10.1.2.3', '192.168.0.1', '172.16.0.1', '169.254.169.254', '0.0.0.0', '::1']
  + ['100.64.0.1', '224.0.0.1', '240.0.0.1', 'fe80::1%eth0', 'fc00::1', '::ffff:127.0.0.1']
  + ['64:ff9b::7f00:1', '2002:7f00:1::', '::'],
)
def test_a_listed_name_of_a_private_address_is_refused(web, names, address):
  names['pictures.test'] = [address]
  with pytest.raises(ApiError, match='not public'):
    read(web, '10', ('pictures.test',), 'pictures.test')
  names['pictures.test'] = [PUBLIC, address]  # One of several is enough.
  with pytest.raises(ApiError, match='not public'):
    read(web, '10', ('pictures.test',), 'pictures.test')
  assert web.asked == []


def test_public_addresses_may_be_connected_to():
  for address in (PUBLIC, '2606:2800:220:1:248:1893:25c8:1946', f'::ffff:{PUBLIC}'):
    assert fetch.Allowed().may_connect(ipaddress.ip_address(address))


@pytest.mark.parametrize(
  'target',
  ['http://169.254.169.254/latest', 'file:///etc/passwd', 'http://other.test/7', '//other.test/7']
  + ['http://localhost:{port}/7', 'https://127.0.0.1:1/', 'ftp://127.0.0.1/7', 'http://[::1]/'],
)
def test_a_redirect_is_checked_like_the_first_url(web, names, target):
  with pytest.raises(ApiError, match='image_url'):
    read(web, f'to?{target.format(port=web.server_port)}')
  assert len(web.asked) == 1 and set(names['asked']) == {'127.0.0.1'}


def test_a_redirect_to_a_name_of_a_private_address_is_refused(web, names):
  names['inner.test'] = ['10.0.0.1']
  with pytest.raises(ApiError, match='not public'):
    read(web, f'to?http://inner.test:{web.server_port}/7', ('127.0.0.1', 'inner.test'))


def test_limits_of_a_file(web, names):
  assert read(web, '1000') == b'a' * 1000
  for path, words in (('1001', 'more than 1000'), ('missing', '404'), ('to?to?to?', 'status|none')):
    with pytest.raises(ApiError, match=words if path != 'to?to?to?' else 'image_url'):
      read(web, path)
  began = time.monotonic()
  with pytest.raises(ApiError, match='not in time|timed out'):
    read(web, 'slow', seconds=0.3)
  assert time.monotonic() - began < 2


def test_redirects_end(web, names):
  class Loop(Handler):
    def do_GET(self):
      self.path = '/to?/'
      super().do_GET()

  web.RequestHandlerClass = Loop
  with pytest.raises(ApiError, match='redirects without end'):
    read(web, '')
  assert len(web.asked) == 4


@pytest.mark.parametrize(
  'url',
  ['http://user:key@127.0.0.1/', 'http://127.0.0.1:99999/', 'http://127.0.0.1\\@other.test/']
  + ['http://127.0.0.1/a b', 'http:///a', 'http://[::1', 'http://127.0.0.1\n.test/', 'HTTP:a']
  + ['http://127.0.0.1:8080/', 'http://xn--a.test/', 'http://127.0.0.1.test/', 'http://ｆoo.test'],
)
def test_other_urls_are_refused_before_a_name_is_resolved(names, url):
  with pytest.raises(ApiError):
    fetch.fetch(url, fetch.Allowed(['127.0.0.1']), 10, 1.0)
  assert names['asked'] == []


@pytest.mark.parametrize('entry', ['', 'http://a.test', 'a.test:x', 'a.test/b', 'a@b', 'a b:c'])
def test_a_wrong_entry_is_refused(entry):
  with pytest.raises(errors.SphinxError, match='--allow_hosts'):
    fetch.Allowed([entry])


def test_entries_without_a_port_stand_for_those_of_http_and_https():
  allowed = fetch.Allowed(['A.test', 'b.test:8080', '::1', '[::2]:90', '010.test'])
  assert allowed.has('a.test', 80) and allowed.has('a.test.', 443)
  assert not allowed.has('a.test', 8080) and not allowed.has('b.test', 80)
  assert allowed.has('b.test', 8080) and allowed.has('::1', 443) and allowed.has('0:0::2', 90)


def test_a_proxy_of_the_environment_is_not_used(web, names, monkeypatch):
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:1')
  monkeypatch.setenv('ALL_PROXY', 'http://127.0.0.1:1')
  assert read(web, '10') == b'a' * 10
