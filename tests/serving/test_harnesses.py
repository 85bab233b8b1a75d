"""Requests of the form that other evaluation harnesses send (docs/serving.md)."""

import json
import urllib.request

import pytest

from tests.generate import small as tiny
from tests.serving import small

QUESTION = 'What is the color?'


@pytest.fixture(scope='module')
def port(engine):
  with small.serving(engine, max_tokens=12) as port:
    yield port


def alone(images):
  return small.model().answers([[(QUESTION, None)]], [images], max_new_tokens=12)[0]


def test_lmms_eval(port):
  """Its class `openai`: the client of OpenAI, content as parts, images as PNG before the text."""
  (image,) = tiny.images(1)
  message = small.messages(QUESTION, small.data_url(image))
  answer = small.client(port).chat.completions.create(
    messages=message, model='tiny', max_tokens=4096, temperature=0
  )
  assert answer.choices[0].message.content.strip() == alone([image]) != ''
  assert answer.usage.completion_tokens > 0 and answer.usage.completion_tokens_details is None


def test_vlmevalkit(port):
  """Its class `GPT4V`: a plain POST without a client, `n`, and JPEG with a `detail`."""
  first, second = tiny.images(2)
  parts = [
    {'type': 'image_url', 'image_url': {'url': small.data_url(image), 'detail': 'high'}}
    for image in (first, second)
  ]
  body = dict(
    model='tiny',
    messages=[{'role': 'user', 'content': [*parts, {'type': 'text', 'text': QUESTION}]}],
    n=1,
    temperature=0,
    max_tokens=2048,
  )
  request = urllib.request.Request(
    f'http://127.0.0.1:{port}/v1/chat/completions',
    json.dumps(body).encode(),
    {'Content-Type': 'application/json', 'Authorization': 'Bearer sk-none'},
  )
  with urllib.request.urlopen(request, timeout=60) as response:
    answer = json.load(response)['choices'][0]['message']['content']
  expected = small.model().answers(
    [[(f'<image><image>{QUESTION}', None)]], [[first, second]], max_new_tokens=12
  )
  assert answer.strip() in (alone([first, second]), *expected) and answer
