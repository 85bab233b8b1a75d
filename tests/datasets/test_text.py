"""RefinedWeb and plain text: every word is in an item, and items have about the set length."""

import pyarrow
import pyarrow.parquet
import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.record import BadExample, Source
from sphinx_jax.datasets import text
from tests.datasets.test_laion import outcomes


def document(number, words):
  return ' '.join(f'word{number}x{i}' for i in range(words))


def web(root, *groups, name='data/train-00000-of-05534-b8fc5348cbe605a5.parquet', column='content'):
  path = root / name
  path.parent.mkdir(parents=True, exist_ok=True)
  schema = pyarrow.schema([(column, pyarrow.string()), ('url', pyarrow.string())])
  with pyarrow.parquet.ParquetWriter(path, schema) as writer:
    for documents in groups:
      writer.write_table(
        pyarrow.table(
          {
            column: pyarrow.array(documents, pyarrow.string()),
            'url': ['https://a.example'] * len(documents),
          },
          schema,
        )
      )
  return path


def opened(tmp_path, source='refinedweb', **more):
  return sources.open_source(dict(source=source, root='text', **more), tmp_path)


def test_every_word_of_refinedweb_is_in_one_item(tmp_path):
  long, short = document(0, 3000), document(1, 20)
  web(tmp_path / 'text', [long, short, None, '', 'Käse 🧀'], [document(2, 40)])
  web(
    tmp_path / 'text', [document(3, 500)], name='data/train-00001-of-05534-b8fc5348cbe605a5.parquet'
  )
  source = opened(tmp_path, words=100)
  assert isinstance(source, Source)
  texts = outcomes(source)
  assert (
    ' '.join(texts).split()
    == ' '.join([long, short, 'Käse 🧀', document(2, 40), document(3, 500)]).split()
  )
  lengths = [len(answer) for answer in texts]
  assert max(lengths) < 100 * 6 + 120 and len(texts) > 40
  record = source[0]
  assert record.turns[0][0] is None and not record.images and record.task == 'text'
  assert len({source[i].id for i in range(len(source))}) == len(source)
  assert [source[i].turns for i in reversed(range(len(source)))][::-1] == [
    source[i].turns for i in range(len(source))
  ]


def test_words_0_keeps_documents_whole(tmp_path):
  web(tmp_path / 'text', [document(0, 3000), None, '  '], [document(2, 40)])
  assert outcomes(opened(tmp_path, words=0)) == [
    document(0, 3000),
    'malformed record',
    'empty text',
    document(2, 40),
  ]


def test_text_without_spaces_is_cut_too():
  line = '文' * 5000
  count = text.piece_count(len(line.encode()), 256)
  cut = [text.piece(line, i, count) for i in range(count)]
  assert count == 10 and ''.join(cut) == line and max(map(len, cut)) <= 501
  line = 'a b' * 40
  assert ''.join(text.piece(line, i, 120) for i in range(120)) == line


def test_errors_of_refinedweb_are_named(tmp_path):
  path = web(tmp_path / 'text', ['a b c'], column='text')
  with pytest.raises(SphinxError, match='columns text, url, expected one of content'):
    opened(tmp_path)
  assert outcomes(opened(tmp_path, column='text')) == ['a b c']
  with pytest.raises(SphinxError, match='words -1'):
    opened(tmp_path, words=-1)
  path.write_bytes(path.read_bytes()[:-20])
  with pytest.raises(SphinxError, match='no rows in 1 files'):
    opened(tmp_path)


def test_lines_paragraphs_and_files(tmp_path):
  (tmp_path / 'text/sub').mkdir(parents=True)
  (tmp_path / 'text/a.txt').write_bytes('\ufeffEins, größer.\r\n\r\n \nZwei\nDrei'.encode())
  (tmp_path / 'text/sub/b.txt').write_bytes(b'\n\nVier\n')
  (tmp_path / 'text/empty.txt').write_bytes(b'')
  (tmp_path / 'text/not.md').write_bytes(b'no text')
  lines = opened(tmp_path, 'plain_text')
  assert isinstance(lines, Source)
  assert outcomes(lines) == ['Eins, größer.', 'Zwei', 'Drei', 'Vier']
  assert [lines[i].id for i in (0, 3)] == ['a.txt/0', 'sub/b.txt/2']
  assert outcomes(opened(tmp_path, 'plain_text', document='paragraph')) == [
    'Eins, größer.',
    'Zwei\nDrei',
    'Vier',
  ]
  assert outcomes(opened(tmp_path, 'plain_text', document='file')) == [
    'Eins, größer.\r\n\r\n \nZwei\nDrei',
    'Vier',
  ]
  assert outcomes(opened(tmp_path, 'plain_text', files='sub/*')) == ['Vier']
  with pytest.raises(SphinxError, match="did you mean 'paragraph'"):
    opened(tmp_path, 'plain_text', document='paragraf')
  with pytest.raises(SphinxError, match='1 empty files'):
    opened(tmp_path, 'plain_text', files='empty.txt')


def test_a_long_document_is_cut_and_a_wrong_encoding_counted(tmp_path):
  (tmp_path / 'text').mkdir()
  (tmp_path / 'text/a.txt').write_bytes(document(0, 1000).encode() + b'\n\xff\xfe broken\nshort\n')
  source = opened(tmp_path, 'plain_text', words=50)
  texts = outcomes(source)
  assert texts[-2:] == ['not utf-8', 'short'] and ' '.join(texts[:-2]) == document(0, 1000)
  (tmp_path / 'text/a.txt').unlink()
  with pytest.raises(BadExample) as caught:
    source[0]
  assert caught.value.reason == 'missing text'
