import gzip
import json
import threading
from concurrent import futures

import pytest
from etils import epath

from sphinx_jax.core import errors, files, text
from tests.checkpoint import bucket


def test_a_file_is_replaced_at_once(tmp_path):
  path = tmp_path / 'a.json'
  for value in ({'a': 1}, {'b': 2}):
    files.write_json(path, value, indent=None)
  assert path.read_text() == '{"b": 2}'
  files.write_atomic(path, b'bytes')
  assert path.read_bytes() == b'bytes' and list(tmp_path.iterdir()) == [path]


def test_several_write_one_file_at_once(tmp_path):
  path, opened = tmp_path / 'a.json', threading.Barrier(4)

  def write(text):
    with files.open_atomic(path) as file:
      opened.wait()
      file.write(text)

  with futures.ThreadPoolExecutor(4) as pool:
    list(pool.map(write, [b'one', b'two', b'three', b'four']))
  assert path.read_bytes() in (b'one', b'two', b'three', b'four')
  assert list(tmp_path.iterdir()) == [path]


def test_a_failure_leaves_the_file_as_it_was(tmp_path):
  path = tmp_path / 'a.json'
  files.write_atomic(path, 'old')
  with pytest.raises(KeyboardInterrupt), files.open_atomic(path) as file:
    file.write(b'ne')
    raise KeyboardInterrupt
  assert path.read_text() == 'old' and list(tmp_path.iterdir()) == [path]


def test_an_object_in_a_bucket_is_written_directly(tmp_path):
  assert files.is_remote('gs://bucket/a') and not files.is_remote(tmp_path)
  with bucket.bucket(tmp_path):
    epath.Path('gs://bucket').mkdir(parents=True, exist_ok=True)
    files.write_atomic('gs://bucket/a', 'text')
  assert (tmp_path / 'bucket' / 'a').read_text() == 'text'


def test_json_lines(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"a": 1}\n\n[2]\n{"a"')
  assert files.read_jsonl(path, drop_partial=True) == [{'a': 1}, [2]]
  with pytest.raises(errors.SphinxError, match='a.jsonl., line 4: got .{"a".'):
    files.read_jsonl(path)
  with pytest.raises(errors.SphinxError, match='expected a readable file'):
    files.read_jsonl(tmp_path / 'none.jsonl')


LINES = [{'a': 1}, {'b': 'é'}]
TEXT = '{"a": 1}\n{"b": "é"}\n'


@pytest.mark.parametrize(
  'data',
  [
    TEXT.encode(),
    TEXT.rstrip().encode(),
    TEXT.encode('utf-8-sig'),
    TEXT.replace('\n', '\r\n').encode(),
    f'\n \n{TEXT}\n\r\n\n'.encode(),
    gzip.compress(TEXT.encode(), mtime=0),
    json.dumps(LINES).encode(),
    json.dumps(LINES, indent=2).encode('utf-8-sig'),
    gzip.compress(b'\n' + json.dumps(LINES).encode(), mtime=0),
  ],
)
def test_every_form_of_json_lines_is_read(tmp_path, data):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(data)
  assert files.read_jsonl(path) == files.read_jsonl(path, drop_partial=True) == LINES


@pytest.mark.parametrize(
  'data, message',
  [
    (TEXT.encode('utf-16'), 'UTF-16'),
    (TEXT.encode('utf-16-le'), 'UTF-16'),
    (TEXT.encode('latin-1'), "line 2: .*'utf-8' codec"),
    (gzip.compress(TEXT.encode(), mtime=0)[:-9], 'damaged gzip'),
    (b'\x1f\x8b' + TEXT.encode(), 'gz'),
    (b'[1, 2', 'line 1'),
    (TEXT.replace('\n', '\r').encode(), 'lines that end with CR alone'),
    (b'\0' * 9, 'zero bytes only'),
    (b'version https://git-lfs.github.com/spec/v1', 'a git-lfs pointer'),
    (b'iVBORw0KGgoAAAANSUhEUg', 'base64 text'),
  ],
)
def test_other_data_are_named(tmp_path, data, message):
  path = tmp_path / 'a.jsonl'
  path.write_bytes(data)
  with pytest.raises(errors.SphinxError, match=message):
    files.read_jsonl(path)


def test_columns_of_a_table_have_equal_width():
  rows = [('name', 'n'), ('a', 10), ('long name', 2)]
  assert text.table(rows, 'lr').split('\n') == ['name        n', 'a          10', 'long name   2']
  assert text.table([], 'lr') == ''
  assert text.table([('\x1b[2J\ud83d', 'a\r\nb\x00')], 'll') == '\\x1b[2J\ufffd  a b\\x00'
