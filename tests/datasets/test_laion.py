"""LAION as img2dataset writes it: webdataset tars and parquet files, complete and damaged."""

import io
import json
import logging
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.record import BadExample, Source
from sphinx_jax.datasets import laion
from sphinx_jax.datasets.laion import Laion, LaionParquet
from tests.datasets import image_files


def add(tar, name, data):
  member = tarfile.TarInfo(name)
  member.size, member.mtime = (
    len(data),
    1700000000.5,
  )  # The times of webdataset have fractions, which need PAX headers.
  tar.addfile(member, io.BytesIO(data))


def sample(tar, key, text='Ein Baum 🌳', image=None, metadata=None):
  add(tar, f'{key}.jpg', image_files.encoded(seed=int(key[-1])) if image is None else image)
  if text is not None:
    add(tar, f'{key}.txt', text if isinstance(text, bytes) else text.encode())
  about = {'caption': text if isinstance(text, str) else None, 'key': key, **(metadata or {})}
  add(tar, f'{key}.json', json.dumps(about).encode())


def tar(root, name='00000.tar', count=3):
  root.mkdir(parents=True, exist_ok=True)
  with tarfile.open(root / name, 'w') as opened:
    for i in range(count):
      sample(
        opened, f'{int(name[:5]):05d}{i:04d}', metadata={'top_caption': f'a tree, {i}', 'TEXT': ''}
      )
  return root / name


def opened(tmp_path, source='laion', **more):
  return sources.open_source(dict(source=source, root='laion', **more), tmp_path)


def outcomes(source):
  results = []
  for index in range(len(source)):
    try:
      results.append(source[index].turns[0][1])
    except BadExample as error:
      results.append(error.reason)
  return results


def test_samples_of_several_tars(tmp_path):
  for i in range(3):
    tar(tmp_path / 'laion', f'0000{i}.tar')
  (tmp_path / 'laion/00000.parquet').write_bytes(b'not read')
  source = opened(tmp_path)
  assert isinstance(source, Source) and len(source) == 9
  assert [source[i].id for i in (0, 4, 8)] == [
    '00000/000000000',
    '00001/000010001',
    '00002/000020002',
  ]
  assert (
    source[4].images[0] == image_files.encoded(seed=1)
    and source[4].turns[0][1] == 'Ein Baum 🌳'
    and source[4].task == 'caption'
  )
  assert opened(tmp_path, caption='top_caption')[5].turns[0][1] == 'a tree, 2'
  assert (
    len(opened(tmp_path, files='0000[12].tar')) == 6
    and len(opened(tmp_path, files=['00002.tar', '00000.tar'])) == 6
  )
  assert set(outcomes(opened(tmp_path, caption='TEXT'))) == {'empty answer'}
  assert set(outcomes(opened(tmp_path, caption='nothing'))) == {'malformed record'}


def test_what_is_missing_or_odd_in_a_tar_is_counted(tmp_path):
  (tmp_path / 'laion').mkdir()
  with tarfile.open(tmp_path / 'laion/00000.tar', 'w') as archive:
    sample(archive, 'a0')
    sample(archive, 'a1', text=None)  # Its .json has no caption either.
    add(archive, 'a2.txt', b'no picture')
    sample(archive, 'a3', image=b'')
    sample(archive, 'a4', image=b'no picture')
    sample(archive, 'a5', text=b'\xff\xfe')
    sample(archive, 'a6', text='  ')
    sample(archive, 'a0', text='the same key again')
    add(archive, 'a8.jpg', image_files.encoded())
    add(archive, 'a9.mp3', b'of another kind')
    add(archive, 'sub/ä1.PNG', image_files.encoded(form='PNG', mode='RGBA'))
    add(archive, 'sub/ä1.json', json.dumps({'caption': 'only in the JSON'}).encode())
  source = opened(tmp_path)
  assert outcomes(source) == [
    'Ein Baum 🌳',
    'no caption',
    'missing image',
    'empty image',
    'unreadable image',
    'malformed record',
    'empty answer',
    'the same key again',
    'no caption',
    'only in the JSON',
  ]
  assert source[7].id == '00000/a0#2' and source[9].id == '00000/ä1'


@pytest.mark.parametrize(
  'harm, what',
  [
    (lambda data: data[:1800], 'unexpected end'),  # in the first image
    (lambda data: data[: -10240 - 700], ''),  # in the last member
    (lambda data: data[:6144] + b'garbage!' * 64 + data[6656:], ''),  # somewhere in the middle
    (lambda data: b'', 'empty file'),
    (lambda data: b'no tar at all' * 100, ''),
  ],
)
def test_a_damaged_tar_gives_what_is_before_the_damage(tmp_path, harm, what):
  tar(tmp_path / 'laion', '00001.tar')
  path = tar(tmp_path / 'laion')
  path.write_bytes(harm(path.read_bytes()))
  source = Laion(tmp_path / 'laion', 'train', 'caption', 1)
  assert list(source.broken) == [str(path)] and what in source.broken[str(path)]
  records = outcomes(opened(tmp_path))
  assert 3 <= len(records) <= 6 and records[-3:] == ['Ein Baum 🌳'] * 3


def test_tars_without_samples_and_missing_tars_are_named(tmp_path):
  (tmp_path / 'laion').mkdir()
  with pytest.raises(SphinxError, match=r"no file '\*.tar'"):
    opened(tmp_path)
  (tmp_path / 'laion/00000.tar').write_bytes(b'')
  with pytest.raises(SphinxError, match='without a sample'):
    opened(tmp_path)
  with pytest.raises(SphinxError, match="no file '00007.tar'"):
    opened(tmp_path, files=['00007.tar'])


def test_many_tars_are_better_prepared_first(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('sphinx_jax'), 'propagate', True)
  monkeypatch.setattr(laion, '_MANY_TARS', 1)
  for i in range(2):
    tar(tmp_path / 'laion', f'0000{i}.tar')
    with caplog.at_level(logging.INFO, 'sphinx_jax'):
      opened(tmp_path)
    assert ('python -m sphinx_jax.prepare --source=laion' in caplog.text) == (i == 1)


def parquet(root, name='00000.parquet', rows=(), group=2):
  root.mkdir(parents=True, exist_ok=True)
  names = ('key', 'caption', 'top_caption', 'jpg', 'status', 'width')
  types = (
    pyarrow.string(),
    pyarrow.string(),
    pyarrow.string(),
    pyarrow.binary(),
    pyarrow.string(),
    pyarrow.int64(),
  )
  table = pyarrow.table(
    [pyarrow.array([row.get(column) for row in rows], kind) for column, kind in zip(names, types)],
    names,
  )
  pyarrow.parquet.write_table(table, root / name, row_group_size=group)


def row(i, **more):
  return (
    dict(
      key=f'{i:09d}',
      caption=f'größe {i}',
      top_caption='a size',
      jpg=image_files.encoded(seed=i),
      status='success',
      width=40,
    )
    | more
  )


ROWS = [
  row(0),
  row(1, status='failed_to_download', jpg=None),
  row(2),
  row(3, caption=None),
  row(4, jpg=None),
  row(2, caption='again'),
  row(6, jpg=b'no picture'),
]


def test_rows_of_parquet_whose_download_succeeded(tmp_path):
  parquet(tmp_path / 'laion', rows=ROWS)
  parquet(tmp_path / 'laion', '00001.parquet', [row(7)])
  source = opened(tmp_path, 'laion_parquet')
  assert isinstance(source, Source) and outcomes(source) == [
    'größe 0',
    'größe 2',
    'no caption',
    'missing image',
    'again',
    'unreadable image',
    'größe 7',
  ]
  assert [source[i].id for i in (1, 4, 6)] == [
    '00000/000000002',
    '00000/000000002#2',
    '00001/000000007',
  ]
  assert source[6].images[0] == image_files.encoded(seed=7)
  assert (
    opened(tmp_path, 'laion_parquet', caption='top_caption', files='00001*')[0].turns[0][1]
    == 'a size'
  )


def test_damaged_parquet_files_are_left_out_and_other_columns_named(tmp_path):
  parquet(tmp_path / 'laion', rows=ROWS)
  (tmp_path / 'laion/00001.parquet').write_bytes(
    (tmp_path / 'laion/00000.parquet').read_bytes()[:-100]
  )
  (tmp_path / 'laion/00002.parquet').write_bytes(b'')
  source = LaionParquet(tmp_path / 'laion', 'train', 'caption', 1)
  assert len(source) == 6 and [path[-13:] for path in source.broken] == [
    '00001.parquet',
    '00002.parquet',
  ]
  with pytest.raises(SphinxError, match='columns key, caption, .*expected one of TEXT'):
    opened(tmp_path, 'laion_parquet', caption='TEXT')
  parquet(tmp_path / 'none', rows=[row(1, status='failed_to_download')])
  with pytest.raises(SphinxError, match='no row whose status is success'):
    sources.open_source(dict(source='laion_parquet', root='none'), tmp_path)


def test_every_file_can_be_a_part_of_a_build(tmp_path):
  for i in range(2):
    tar(tmp_path / 'laion', f'0000{i}.tar')
  root = tmp_path / 'laion'
  settings = Laion.settings_per_file(root, {'caption': 'top_caption'})
  assert settings == [{'caption': 'top_caption', 'files': [f'0000{i}.tar']} for i in range(2)]
  assert [len(Laion(root, **own)) for own in settings] == [3, 3]
