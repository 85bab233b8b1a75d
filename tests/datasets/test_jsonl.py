"""The user's own JSON and JSONL files, well-formed and malformed."""

import gzip
import json

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.record import BadExample, Source
from sphinx_jax.datasets.jsonl import Jsonl, open_source


def _item(*values, **more):
  return {
    'conversations': [
      {'from': ('human', 'gpt')[i % 2], 'value': value} for i, value in enumerate(values)
    ],
    **more,
  }


@pytest.fixture
def folder(tmp_path):
  Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(tmp_path / 'a.png')
  return tmp_path


def _write(folder, name, lines):
  path = folder / name
  path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines))
  return path


GOOD = [
  _item('<image>\nWhat? ', ' A cat.\n', image='a.png'),
  _item('2+2?', 4, 'And 3+3?', 'Six <image>'),
]


@pytest.mark.parametrize('form', ['json', 'jsonl'])
def test_reads_turns_and_images(folder, form):
  path = folder / f'data.{form}'
  path.write_text(json.dumps(GOOD) if form == 'json' else '\n\n'.join(map(json.dumps, GOOD)) + '\n')
  source = Jsonl(path, task='mine')
  assert isinstance(source, Source) and len(source) == 2
  assert source[0].turns == (('<image>What?', 'A cat.'),) and source[0].marks == 'loose'
  assert source[0].images[0] == (folder / 'a.png').read_bytes()
  assert source[1].turns == (('2+2?', '4'), ('And 3+3?', 'Six'))
  assert not source[1].images and source[1].task == 'mine' and len(source[1].truth) == 2


def test_a_conversation_may_begin_with_the_model_and_end_with_a_question(folder):
  turns = [('gpt', 'Hello'), ('human', 'Hi'), ('gpt', 'One.'), ('gpt', 'Two.'), ('human', 'Bye')]
  item = {'conversations': [{'from': who, 'value': value} for who, value in turns]}
  assert Jsonl(_write(folder, 'd.jsonl', [item]))[0].turns == (
    (None, 'Hello'),
    ('Hi', 'One.'),
    (None, 'Two.'),
  )


@pytest.mark.parametrize(
  'line, reason',
  [
    ('{"conversations": [', 'not json'),
    ('\r'.join(map(json.dumps, GOOD)), 'not json'),
    ('[1, 2]', 'not a conversation'),
    ({'image': 'a.png'}, 'not a conversation'),
    ({'conversations': [{'from': 'system', 'value': 'x'}]}, 'not a conversation'),
    (
      {'conversations': [{'from': 'human', 'value': 'x'}, {'from': 'human', 'value': 'y'}]},
      'not a conversation',
    ),
    (_item('Q', 'A', image='no/such.png'), 'missing image'),
    (_item('Q', 'A', image=5), 'missing image'),
    (_item('Q', ' '), 'empty answer'),
    (_item('Q', '<image>'), 'empty answer'),
    (_item('Q'), 'empty answer'),
    (_item(), 'empty answer'),
  ],
)
def test_bad_lines_are_named_and_leave_the_others(folder, line, reason):
  path = _write(folder, 'd.jsonl', [GOOD[0], '', line, GOOD[1]])
  source = Jsonl(path)
  with pytest.raises(BadExample, match=f'{path}:3: ') as caught:
    source[1]
  assert caught.value.reason == reason
  assert source[0].turns and source[2].turns


def test_bad_items_of_a_list_are_named(folder):
  source = Jsonl(_write(folder, 'd.json', [json.dumps([GOOD[0], {}])]))
  with pytest.raises(BadExample, match='d.json: item 2'):
    source[1]


@pytest.mark.parametrize(
  'name, text, message',
  [
    ('none.jsonl', None, "none.jsonl': got no such file"),
    ('empty.jsonl', '\n \n', "empty.jsonl': got an empty file"),
    ('empty.json', '', "empty.json': got an empty file"),
    ('lines.json', '{"a": 1}\n{"a": 2}', 'name the file .jsonl'),
    ('object.json', '{"a": 1}', 'a JSON dict, expected a list'),
  ],
)
def test_refuses_a_file_without_items(tmp_path, name, text, message):
  if text is not None:
    (tmp_path / name).write_text(text)
  with pytest.raises(SphinxError, match=message):
    Jsonl(tmp_path / name)


@pytest.mark.parametrize(
  'name, encode',
  [
    ('a.jsonl', lambda text: text.encode('utf-8-sig')),
    ('a.jsonl', lambda text: text.replace('\n', '\r\n\r\n').encode()),
    ('a.jsonl', lambda text: f'\n\n{text}\n \n'.encode()),
    ('a.jsonl', lambda text: gzip.compress(text.encode())),
    ('a.jsonl.gz', lambda text: gzip.compress(text.encode())),
    ('a.txt', str.encode),
    ('a.json', lambda text: json.dumps(GOOD).encode('utf-8-sig')),
    ('a.json', lambda text: json.dumps(GOOD).encode('utf-16')),
    ('a.json.gz', lambda text: gzip.compress(json.dumps(GOOD).encode())),
  ],
)
def test_every_form_of_a_file_is_the_same(folder, name, encode):
  (folder / name).write_bytes(encode('\n'.join(map(json.dumps, GOOD))))
  source = Jsonl(folder / name)
  assert [source[i].turns for i in range(len(source))] == [
    (('<image>What?', 'A cat.'),),
    (('2+2?', '4'), ('And 3+3?', 'Six')),
  ]


def test_a_giant_line_is_read_alone(folder):
  long = _item('Q', 'x' * 10**6)
  source = Jsonl(_write(folder, 'd.jsonl', [long, GOOD[1]]))
  assert len(source[0].turns[0][1]) == 10**6 and source[1].turns[1] == ('And 3+3?', 'Six')


@pytest.mark.parametrize(
  'data, message',
  [
    (
      json.dumps(GOOD).encode(),
      'a JSON list, expected one JSON object a line; name the file .json',
    ),
    (json.dumps(GOOD, indent=2).encode('utf-8-sig'), 'a JSON list'),
    ('\n'.join(map(json.dumps, GOOD)).encode('utf-16'), 'UTF-16 text, expected UTF-8'),
    (b'version https://git-lfs.github.com/spec/v1\noid', 'a git-lfs pointer, expected one JSON'),
    (b'\n<!DOCTYPE html>\n<html>', 'an HTML page'),
    (b'PAR1\x15\x04\n', 'a Parquet file'),
    *((begin + b'\n{}', 'a compressed archive') for begin in (b'PK\3\4', b'BZh9', b'\xfd7zXZ\0')),
    (b'\0' * 99, 'zero bytes only'),
    (gzip.compress(json.dumps(GOOD[1]).encode(), mtime=0)[:-12], 'damaged gzip data'),
  ],
)
def test_names_what_is_no_json_lines(folder, data, message):
  (folder / 'd.jsonl').write_bytes(data)
  with pytest.raises(SphinxError, match=message):
    Jsonl(folder / 'd.jsonl')


def test_open_source_takes_an_entry(folder):
  (folder / 'pictures').mkdir()
  (folder / 'a.png').rename(folder / 'pictures/a.png')
  _write(folder, 'd.jsonl', [GOOD[0]])
  entry = {
    'source': 'jsonl',
    'path': 'd.jsonl',
    'root': str(folder / 'pictures'),
    'task': 'chat',
    'too_long': 'cut_text',
  }
  source = open_source(entry, folder)
  assert source[0].images[0] and source[0].task == 'chat' and source.too_long == 'cut_text'
  with pytest.raises(SphinxError, match="did you mean 'cut_text'"):
    open_source({**entry, 'too_long': 'cuttext'}, folder)
