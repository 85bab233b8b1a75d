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


def test_columns_of_a_table_have_equal_width():
  rows = [('name', 'n'), ('a', 10), ('long name', 2)]
  assert text.table(rows, 'lr').split('\n') == ['name        n', 'a          10', 'long name   2']
  assert text.table([], 'lr') == ''
