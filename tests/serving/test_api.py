"""The server as clients see it. They talk to the loopback address only."""

import base64
import http.client
import json
import pathlib
import re
import socket
import threading
import time
import urllib.request

import numpy as np
import openai
import pytest

from sphinx_jax.core import errors
from sphinx_jax.data import dialog
from sphinx_jax.generate.model import Model
from sphinx_jax.serving import api, engine as engines, images as images_lib
from tests.generate import small as tiny
from tests.serving import small

QUESTION = 'What is the color?'


@pytest.fixture(scope='module')
def port(engine):
  limits = images_lib.Limits(count=3, file_bytes=100_000, pixels=10_000, seconds=2)
  with small.serving(engine, queue=20, max_choices=4, body_bytes=1 << 20, images=limits) as port:
    yield port


@pytest.fixture(scope='module')
def client(port):
  return small.client(port)


def ask(client, messages, **options):
  options = {'max_tokens': 12, 'temperature': 0, **options}
  return client.chat.completions.create(model='tiny', messages=messages, **options)


def alone(question, images=None, **options):
  options = {'max_new_tokens': 12, **options}
  return small.model().answers([[(question, None)]], images and [images], **options)[0]


def test_an_answer_is_that_of_the_model(client):
  answer = ask(client, [{'role': 'user', 'content': QUESTION}])
  (choice,) = answer.choices
  assert choice.message.content == alone(QUESTION) != ''
  assert (choice.finish_reason, choice.message.role, answer.model) == (
    'length',
    'assistant',
    'tiny',
  )
  prompt = len(small.model().prompt_of([(QUESTION, None)], 0).ids)
  assert answer.usage.prompt_tokens == prompt and answer.usage.completion_tokens == 12


def test_a_conversation_with_a_system_message_and_images(client):
  """A single image stands where the model had it in training; several, where their parts are."""
  first, second = tiny.images(2)
  model = small.model()
  answer = ask(client, small.messages(QUESTION, small.data_url(first)))
  assert answer.choices[0].message.content == alone(QUESTION, [first])
  dialog_of = [
    {'role': 'system', 'content': 'One word.'},
    *small.messages('red', small.data_url(first, 'PNG')),
    {'role': 'assistant', 'content': 'blue'},
    *small.messages('one two', small.data_url(second)),
  ]
  template = dialog.Template('One word.')
  other = Model(model.config, model.params, model.tokenizer, template, bucket=64)
  turns = [('<image>red', 'blue'), ('<image>one two', None)]
  (expected,) = other.answers([turns], [[first, second]], max_new_tokens=12)
  assert ask(client, dialog_of).choices[0].message.content == expected


def test_a_last_message_of_the_assistant_begins_the_answer(client):
  begun = [*small.messages(QUESTION), {'role': 'assistant', 'content': 'The color'}]
  prompt = small.model().prompt_of([(QUESTION, None)], 0, begin=' The color')
  (expected,) = small.model().complete([prompt], max_new_tokens=12)
  assert ask(client, begun).choices[0].message.content == expected != alone(QUESTION)


def test_a_stream_has_the_same_text_in_pieces(client):
  for options in ({}, {'n': 2, 'seed': 3, 'temperature': 1.5}, {'stop': ['e', 'g']}):
    whole = ask(client, small.messages(QUESTION), max_tokens=60, **options)
    chunks = list(
      ask(
        client,
        small.messages(QUESTION),
        max_tokens=60,
        stream=True,
        stream_options={'include_usage': True},
        **options,
      )
    )
    assert chunks[-1].usage == whole.usage and not chunks[-1].choices
    for choice in whole.choices:
      of_choice = [c.choices[0] for c in chunks[:-1] if c.choices[0].index == choice.index]
      pieces = [c.delta.content or '' for c in of_choice]
      assert ''.join(pieces) == choice.message.content
      assert of_choice[0].delta.role == 'assistant'
      assert [c.finish_reason for c in of_choice if c.finish_reason] == [choice.finish_reason]
      if not options:
        assert len([piece for piece in pieces if piece]) > 2


def test_choices_are_draws_of_the_seed(client):
  options = dict(n=3, seed=11, temperature=1.2, top_p=0.9, max_tokens=8)
  texts = [c.message.content for c in ask(client, small.messages(QUESTION), **options).choices]
  same = small.model().answers(
    [[(QUESTION, None)]] * 3, max_new_tokens=8, seed=11, temperature=1.2, top_p=0.9
  )
  assert texts == same and len(set(texts)) == 3
  unseeded = {
    ask(client, small.messages(QUESTION), temperature=1.5).choices[0].message.content
    for _ in range(3)
  }
  assert len(unseeded) > 1


def test_a_stop_text_ends_the_answer_and_is_not_in_it(client):
  whole = alone(QUESTION, max_new_tokens=60)
  stop = whole[9:12]
  choice = ask(client, small.messages(QUESTION), max_tokens=60, stop=stop).choices[0]
  assert choice.message.content == whole.split(stop)[0].strip() and choice.finish_reason == 'stop'
  choice = ask(client, small.messages(QUESTION), max_tokens=60, stop=['no such', stop]).choices[0]
  assert choice.message.content == whole.split(stop)[0].strip()


def test_log_probabilities_belong_to_the_tokens_of_the_answer(client):
  options = dict(logprobs=True, top_logprobs=3, max_tokens=30)
  choice = ask(client, small.messages(QUESTION), **options).choices[0]
  entries = choice.logprobs.content
  raw = b''.join(bytes(entry.bytes) for entry in entries).decode(errors='replace')
  assert raw.strip() == choice.message.content
  for entry in entries:
    assert len(entry.top_logprobs) == 3
    assert entry.logprob == max(other.logprob for other in entry.top_logprobs) <= 0
  streamed = [
    entry
    for chunk in ask(client, small.messages(QUESTION), stream=True, **options)
    if chunk.choices[0].logprobs
    for entry in chunk.choices[0].logprobs.content
  ]
  assert [entry.token for entry in streamed] == [entry.token for entry in entries]
  plain = ask(client, small.messages(QUESTION), logprobs=True).choices[0]
  assert plain.logprobs.content[0].top_logprobs == []


def test_boxes_and_points_come_as_json(client, monkeypatch):
  def text_of(self, is_last):
    self._raw = 'red circle [0.25, 0.25, 0.75, 0.5], nose [0.50, 0.25]'

  from sphinx_jax.generate.text_stream import TextStream

  monkeypatch.setattr(TextStream, '_read', text_of)
  wide = np.zeros((10, 20, 3), np.uint8)
  form = {'type': 'json_object'}
  for stream in (False, True):
    answer = ask(
      client,
      small.messages('Detect.', small.data_url(wide)),
      response_format=form,
      max_tokens=1,
      stream=stream,
    )
    if stream:
      content = ''.join(chunk.choices[0].delta.content or '' for chunk in answer)
    else:
      content = answer.choices[0].message.content
    assert json.loads(content) == {
      'text': 'red circle [0.25, 0.25, 0.75, 0.5], nose [0.50, 0.25]',
      'unit': 'pixels',
      'boxes': [{'label': 'red circle', 'box': [5.0, 0.0, 15.0, 5.0]}],
      'points': [{'label': 'nose', 'point': [10.0, 0.0]}],
      'notes': [],
    }
  content = ask(client, small.messages('Detect.'), response_format=form).choices[0].message.content
  assert json.loads(content)['unit'] == 'padded_square'


def test_an_image_is_encoded_once(client, engine):
  (pixels,) = tiny.images(1)
  url = small.data_url(pixels[:13])
  before = engine.images.misses
  for question in ('red', 'one', 'two'):
    ask(client, small.messages(question, url), max_tokens=1)
  assert engine.images.misses == before + 1


def test_the_program_of_the_page_works(port, tmp_path, monkeypatch, capsys):
  page = (pathlib.Path(__file__).parents[2] / 'docs' / 'serving.md').read_text()
  code = re.search(r'```python\n(.*?)```', page, re.DOTALL)[1]
  url = small.data_url(tiny.images(1)[0])
  (tmp_path / 'cat.png').write_bytes(base64.b64decode(url.partition(',')[2]))
  monkeypatch.chdir(tmp_path)
  code = code.replace(':8000', f':{port}').replace("'stage2'", "'tiny'")
  exec(code.replace('max_tokens=100', 'max_tokens=12'), {})
  assert capsys.readouterr().out == alone('Detect all objects.', tiny.images(1))


def test_models_health_and_metrics(client, port):
  assert [model.id for model in client.models.list()] == ['tiny']
  assert client.models.retrieve('tiny').owned_by == 'sphinx_jax'
  assert json.load(urllib.request.urlopen(f'http://127.0.0.1:{port}/health')) == {'status': 'ok'}
  ask(client, small.messages('red'))
  page = urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics').read().decode()
  values = dict(line.rsplit(' ', 1) for line in page.splitlines() if line[0] != '#')
  assert float(values['sphinx_jax_requests_total{status="200"}']) >= 1
  assert float(values['sphinx_jax_generated_tokens_total']) >= 12
  assert float(values['sphinx_jax_first_token_seconds_count']) >= 1
  assert float(values['sphinx_jax_slots']) == small.ROWS
  assert float(values['sphinx_jax_slots_used']) == float(values['sphinx_jax_queue']) == 0


REFUSED = [
  (dict(model='other'), 404, 'see /v1/models'),
  (dict(temperature=3), 400, 'temperature'),
  (dict(top_p=0), 400, 'top_p'),
  (dict(max_tokens=0), 400, 'max_tokens'),
  (dict(max_tokens=True), 400, 'max_tokens'),
  (dict(n=5), 400, 'at most 4'),
  (dict(seed=2**64), 400, 'seed'),
  (dict(stop=['']), 400, 'stop'),
  (dict(stop=['a'] * 5), 400, 'stop'),
  (dict(top_logprobs=2), 400, 'logprobs'),
  (dict(frequency_penalty=0.5), 400, 'frequency_penalty'),
  (dict(tools=[{'type': 'function'}]), 400, 'tools'),
  (dict(response_format={'type': 'json_schema'}), 400, 'response_format'),
  (dict(no_such_field=1), 400, 'no_such_field'),
  (dict(messages=[]), 400, 'messages'),
  (dict(messages=[{'role': 'tool', 'content': 'a'}]), 400, 'role'),
  (dict(messages=[{'role': 'assistant', 'content': 'a'}]), 400, 'in turns'),
  (dict(messages=[{'role': 'user', 'content': 'a'}] * 2), 400, 'in turns'),
  (dict(messages=[{'role': 'user', 'content': None}]), 400, 'content'),
  (dict(messages=[{'role': 'user', 'content': [{'type': 'input_audio'}]}]), 400, 'input_audio'),
  (dict(messages=small.messages('red ' * 100)), 400, 'shorten the conversation'),
  (dict(messages=small.messages('red ' * 9000)), 400, 'shorten the conversation'),
  (dict(messages=small.messages('\ufdfa\u0335' * 5000)), 400, 'shorten the conversation'),
  (
    dict(messages=small.messages('<image> red', small.data_url(tiny.images(1)[0]))),
    400,
    'in a text',
  ),
  (dict(messages=small.messages('red', *['data:'] * 4)), 400, 'at most 3'),
]


@pytest.mark.parametrize('change, status, words', REFUSED, ids=lambda value: str(value)[:40])
def test_a_request_that_cannot_be_answered_is_refused_with_the_reason(port, change, status, words):
  body = dict(model='tiny', messages=small.messages('red'), max_tokens=2) | change
  found, answer = post(port, json.dumps(body).encode())
  assert found == status and words in answer['error']['message'], answer
  assert set(answer['error']) == {'message', 'type', 'param', 'code'}


def post(port, body, headers=None, path='/v1/chat/completions'):
  """Status and JSON value of a POST with any body."""
  connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
  headers = {'Content-Type': 'application/json'} | (headers or {})
  connection.request('POST', path, body, headers)
  response = connection.getresponse()
  answer = response.read()
  connection.close()
  return response.status, json.loads(answer)


def test_hostile_bodies_are_refused_and_the_server_goes_on(port, client):
  good = json.dumps(dict(model='tiny', messages=small.messages('red'), max_tokens=2)).encode()
  for body, status in (
    (b'', 400),
    (good[:-20], 400),
    (b'[' * 100_000, 400),
    (b'{"model": "tiny", "messages": ' + b'[{"a":' * 50_000, 400),
    (b'\xff\xfe' + good, 400),
    (good.replace(b'"red"', b'"\\ud800"'), 400),
    (good.replace(b'"red"', b'NaN'), 400),
    (good.replace(b': 2', b': 1e400'), 400),
    (good.replace(b': 2', b': ' + b'9' * 5000), 400),
    (good.replace(b'"user"', b'{"user": 1}'), 400),
    (b'null', 400),
    (b'a' * (2 << 20), 413),
  ):
    found, answer = post(port, body)
    assert found == status and answer['error']['message'], body[:60]
  for text in ('\0\0', '\u202e' * 30, 'a' + '\u0301' * 60, '\U0010ffff' * 9, '###' * 9, '</s><s>'):
    found, answer = post(port, good.replace(b'red', json.dumps(text)[1:-1].encode()))
    assert found == 200, (text, answer)
  assert post(port, good, {'Content-Type': 'text/plain'})[0] == 415
  assert post(port, good, path='/v1/nothing')[0] == 404
  assert ask(client, small.messages(QUESTION)).choices[0].message.content == alone(QUESTION)


def bomb():
  """A small PNG of 30,000 x 30,000 pixels."""
  import struct
  import zlib

  def part(name, data):
    return struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))

  head = struct.pack('>IIBBBBB', 12_000, 12_000, 8, 0, 0, 0, 0)
  rows = zlib.compress(bytes(1_000_000))
  return b'\x89PNG\r\n\x1a\n' + part(b'IHDR', head) + part(b'IDAT', rows) + part(b'IEND', b'')


@pytest.mark.filterwarnings('ignore::PIL.Image.DecompressionBombWarning')
def test_hostile_images_are_refused(port, client, tmp_path):
  good = small.data_url(tiny.images(1)[0])
  (tmp_path / 'secret.png').write_bytes(base64.b64decode(good.partition(',')[2]))
  encoded = lambda data: f'data:image/png;base64,{base64.b64encode(data).decode()}'
  for url in (
    'file:///etc/passwd',
    f'file://{tmp_path}/secret.png',
    f'{tmp_path}/secret.png',
    '/etc/passwd',
    '../../etc/passwd',
    'http://169.254.169.254/latest/meta-data',
    f'http://127.0.0.1:{port}/metrics',
    'http://localhost/a.png',
    'http://[::1]/a.png',
    'http://0x7f000001/a.png',
    'http://2130706433/a.png',
    'ftp://example.com/a.png',
    'gopher://127.0.0.1:70/',
    'javascript:alert(1)',
    '',
    'data:',
    'data:image/png;base64,',
    'data:image/png,abc',
    'data:image/png;base64,not base64!',
    'data:image/png;base64,' + 'A' * 999,
    good[:-40],
    good + '\n',
    'data:text/html;base64,PGh0bWw+',
    encoded(b'%!PS-Adobe-3.0 EPSF-3.0\n'),
    encoded(b'<svg xmlns="http://www.w3.org/2000/svg"/>'),
    encoded(bomb()),
    small.data_url(np.zeros((101, 101, 3), np.uint8)),
    encoded(bytes(200_000)),
    'data:' + 'a/' * 100_000,
  ):
    body = dict(model='tiny', messages=small.messages('red', url), max_tokens=2)
    status, answer = post(port, json.dumps(body).encode())
    assert status == 400 and answer['error']['message'].startswith(('image', 'messages')), url[:60]
  assert ask(client, small.messages('red', good)).choices[0].message.content


def test_a_client_that_is_gone_frees_its_slot(client, engine):
  stream = ask(client, small.messages('one two three'), max_tokens=120, stream=True)
  next(stream)
  stream.close()
  wait_until(lambda: engine.running == 0)
  body = dict(model='tiny', messages=small.messages('one two three'), max_tokens=120, n=4)
  for _ in range(3):  # The first ones get slots, the others wait.
    impatient = http.client.HTTPConnection('127.0.0.1', client.base_url.port)
    headers = {'Content-Type': 'application/json'}
    impatient.request('POST', '/v1/chat/completions', json.dumps(body), headers)
    generated = engine.generated
    wait_until(lambda before=generated: engine.generated > before)
    impatient.close()
  wait_until(lambda: engine.running == 0 and engine.waiting == 0)
  before = engine.generated
  assert ask(client, small.messages('red'), max_tokens=3).choices
  assert engine.generated == before + 3


def wait_until(condition, seconds=20):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end
    time.sleep(0.01)


def test_a_full_queue_answers_429_and_recovers(engine):
  with small.serving(engine, queue=1) as port:
    client, refused, answered = small.client(port), [], []

    def ask_one():
      try:
        answered.append(ask(client, small.messages(QUESTION), max_tokens=60))
      except openai.RateLimitError as error:
        refused.append(error)

    threads = [threading.Thread(target=ask_one) for _ in range(16)]
    for thread in threads:
      thread.start()
    for thread in threads:
      thread.join()
    assert len(refused) + len(answered) == 16 and len(answered) >= small.ROWS and refused
    assert all(1 <= int(error.response.headers['retry-after']) <= 60 for error in refused)
    expected = alone(QUESTION, max_new_tokens=60)
    assert {one.choices[0].message.content for one in answered} == {expected}
    with pytest.raises(openai.BadRequestError, match='at most 5'):
      ask(client, small.messages(QUESTION), n=8)
    assert ask(client, small.messages(QUESTION)).choices  # All places were given back.
    patient = small.client(port, retries=5)
    assert ask(patient, small.messages(QUESTION)).choices


def test_an_answer_that_takes_too_long_is_given_up(engine):
  with small.serving(engine, seconds=0.02) as port:
    client = small.client(port)
    with pytest.raises(openai.InternalServerError, match='no answer in time') as error:
      ask(client, small.messages(QUESTION), max_tokens=120)
    assert error.value.status_code == 504
    wait_until(lambda: engine.running == 0)


def test_a_client_that_does_not_read_gives_up_its_place(engine, monkeypatch):
  monkeypatch.setattr('sphinx_jax.serving.api._LAST_SECONDS', 0.0)
  options = dict(stream=True, logprobs=True, top_logprobs=20, max_tokens=140, temperature=0)
  body = json.dumps(
    dict(model='tiny', messages=small.messages(QUESTION), n=small.ROWS, **options)
  ).encode()
  with small.serving(engine, queue=0, seconds=2) as port, socket.socket() as deaf:
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.connect(('127.0.0.1', port))
    deaf.sendall(
      b'POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
      b'Content-Length: %d\r\n\r\n%s' % (len(body), body)
    )
    client = small.client(port)
    wait_until(lambda: is_refused(client))
    wait_until(lambda: not is_refused(client))


def is_refused(client):
  try:
    return not ask(client, small.messages('red'), max_tokens=1).choices
  except openai.RateLimitError:
    return True


def test_slow_clients_are_closed(engine, monkeypatch):
  monkeypatch.setattr('sphinx_jax.serving.http._HEADER_SECONDS', 0.2)
  with small.serving(engine, body_seconds=0.3) as port:
    silent = socket.create_connection(('127.0.0.1', port), timeout=10)
    headers = socket.create_connection(('127.0.0.1', port), timeout=10)
    headers.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\n')
    body = socket.create_connection(('127.0.0.1', port), timeout=10)
    body.sendall(
      b'POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n'
      b'Content-Length: 100\r\n\r\n{'
    )
    assert silent.recv(100) == headers.recv(100) == b''
    assert body.recv(100).startswith(b'HTTP/1.1 408')
    for connection in (silent, headers, body):
      connection.close()
    assert ask(small.client(port), small.messages(QUESTION)).choices


def test_a_key_is_asked_for_if_there_is_one(engine):
  with small.serving(engine, keys=['first', 'second key']) as port:
    for key in ('first', 'second key'):
      assert ask(small.client(port, key), small.messages('red')).choices
    for key in ('wrong', 'firs', 'first key'):
      with pytest.raises(openai.AuthenticationError, match='API key'):
        ask(small.client(port, key), small.messages('red'))
    assert urllib.request.urlopen(f'http://127.0.0.1:{port}/health').status == 200
    with pytest.raises(urllib.error.HTTPError, match='401'):
      urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics')


def test_web_pages_of_other_origins_need_a_setting(engine):
  def allowed(port):
    request = urllib.request.Request(
      f'http://127.0.0.1:{port}/v1/chat/completions',
      method='OPTIONS',
      headers={
        'Origin': 'https://page.example',
        'Access-Control-Request-Method': 'POST',
        'Access-Control-Request-Headers': 'content-type',
      },
    )
    try:
      return urllib.request.urlopen(request).headers.get('Access-Control-Allow-Origin')
    except urllib.error.HTTPError:
      return None

  for origins, expected in (((), None), (('https://page.example',), 'https://page.example')):
    with small.serving(engine, cors_origins=origins) as port:
      assert allowed(port) == expected


def test_a_base_model_is_refused(engine):
  model = small.model()
  base = Model(model.config, model.params, model.tokenizer, dialog.Template(style='idefics2_base'))
  with pytest.raises(errors.SphinxError, match='base model'):
    api.make_app(engines.Engine(base, 1, 64), api.Settings('base'))
