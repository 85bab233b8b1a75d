"""Building: the same records as the official files give, whoever writes the shards and however often it is interrupted."""

import contextlib
import io
import json
import os
import pathlib
import pickle
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from sphinx_jax import datasets as sources
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.record import BadExample
from sphinx_jax.preparation import (
  folder as built_folder,
  runners as build_runners,
  write as building,
)
from tests.datasets import layouts, pictures
from tests.datasets.test_laion import tar

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ('person', 'dog')


@pytest.fixture
def coco(tmp_path):
  """17 pictures with boxes, of which some are odd and some are unusable."""
  images = {i: f'{i:012d}.jpg' for i in range(17)}
  boxes = [layouts.box(i, 1 + i % 2, [i, 2, 10, 12.5]) for i in range(17)] + [
    layouts.box(3, 2, [-4, 1, 99, 99], crowd=1)
  ]
  root = layouts.coco(tmp_path / 'coco', 'instances', 'val2017', images, boxes, NAMES)
  for i, data in {
    2: pictures.encoded(mode='CMYK'),
    5: pictures.encoded(mode='L'),
    7: pictures.truncated(),
    9: b'',
    11: b'no picture',
  }.items():
    pictures.write(root / 'val2017' / images[i], data)
  (root / 'val2017' / images[13]).unlink()
  return root


def made(root, output, source='coco', shard=4, **more):
  return building.make(source, str(root), str(output), shard=shard, **more)


def run(build, processes=1):
  shards = building.plan(build)
  found = built_folder.claim(build, shards)
  if found is None:
    build_runners.local(build, shards, processes)
    found = built_folder.finish(build, shards)
  return found


def bytes_of(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.glob('*.array_record*'))}


def outcomes(source):
  found = []
  for index in range(len(source)):
    try:
      found.append(source[index])
    except BadExample as error:
      found.append(error.reason)
  return found


def test_a_build_has_the_records_of_the_files_and_counts_the_rest(coco, tmp_path):
  build = made(coco, tmp_path / 'out', split='val2017', task='detection')
  split = run(build)
  assert (split['items'], split['records'], split['shards']) == (17, 13, 5) and split[
    'lengths'
  ] == [4, 3, 2, 3, 1]
  assert split['skipped'] == {'unreadable image': 2, 'empty image': 1, 'missing image': 1}
  assert '000000000013.jpg' in split['first']['missing image']
  straight = sources.open_source(
    dict(source='coco', root='coco', split='val2017', task='detection', seed=1), tmp_path
  )
  built = sources.open_source(
    dict(source='array_record', root='out', split='val2017', task='detection'), tmp_path
  )
  assert built.name == 'array_record' and len(built) == 13
  good = [i for i in range(17) if i not in (7, 9, 11, 13)]
  for place, index in reversed(list(enumerate(good))):
    item, kept = straight.family.item(index), built.family.item(place)
    assert kept.id == item.id and kept.annotation == json.loads(json.dumps(item.annotation))
    assert kept.image == item.image.read_bytes()
    assert built[place].truth and built[place].image == straight[index].image
  words = built_folder.table(split)
  assert 'skipped: unreadable image' in words and '17' in words and '13' in words


def test_tfds_reads_a_build_by_itself(coco, tmp_path):
  import tensorflow_datasets as tfds

  run(made(coco, tmp_path / 'out', split='val2017', task='detection'))
  builder = tfds.builder_from_directory(tmp_path / 'out')
  assert builder.info.splits['val2017'].num_examples == 13 and builder.info.name == 'coco'
  row = builder.as_data_source('val2017')[0]
  assert np.array_equal(row['image'], np.asarray(Image.open(io.BytesIO(pictures.encoded()))))
  assert row['size'].tolist() == [40, 30]


def test_an_interrupted_build_goes_on_and_any_number_of_processes_writes_the_same_bytes(
  coco, tmp_path, monkeypatch
):
  run(made(coco, tmp_path / 'whole', split='val2017', task='detection'))
  build = made(coco, tmp_path / 'out', split='val2017', task='detection')
  record, seen = building._record, []

  def interrupted(item):
    seen.append(item.id)
    if len(seen) == 10:
      raise KeyboardInterrupt
    return record(item)

  monkeypatch.setattr(building, '_record', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run(build)
  first = bytes_of(tmp_path / 'out')
  assert len(first) == 2
  times = {name: os.stat(tmp_path / 'out' / name).st_mtime_ns for name in first}
  with pytest.raises(SphinxError, match='2 of 5 shards'):
    built_folder.finish(build, building.plan(build))
  monkeypatch.setattr(building, '_record', record)
  run(build)
  assert bytes_of(tmp_path / 'out') == bytes_of(tmp_path / 'whole')
  assert times == {name: os.stat(tmp_path / 'out' / name).st_mtime_ns for name in first}
  run(made(coco, tmp_path / 'spread', split='val2017', task='detection'), processes=2)
  assert bytes_of(tmp_path / 'spread') == bytes_of(tmp_path / 'whole')
  assert not [path for path in (tmp_path / 'out').iterdir() if path.name.startswith('.')]


def test_a_shard_that_was_harmed_while_building_is_written_again(coco, tmp_path, monkeypatch):
  build = made(coco, tmp_path / 'out', split='val2017', task='detection')
  shards = building.plan(build)
  assert built_folder.claim(build, shards) is None
  build_runners.local(build, shards, 1)
  whole = bytes_of(tmp_path / 'out')
  harmed = building.place(build, shards[1])
  harmed.write_bytes(harmed.read_bytes()[:-7])
  building.place(build, shards[2]).unlink()
  build_runners.local(build, shards, 1)
  assert bytes_of(tmp_path / 'out') == whole
  fewer = building.place(build, shards[4]).read_bytes()  # A file of the same size.
  building.place(build, shards[0]).write_bytes(fewer)
  with pytest.raises(SphinxError, match='records in the file: 1, expected 4'):
    built_folder.finish(build, shards)


def test_a_finished_build_is_recognised_and_others_are_refused(coco, tmp_path):
  build = made(coco, tmp_path / 'out', split='val2017', task='detection')
  split, before = run(build), bytes_of(tmp_path / 'out')
  assert run(build) == split and bytes_of(tmp_path / 'out') == before
  layouts.coco(
    tmp_path / 'other',
    'instances',
    'val2017',
    {1: 'a.jpg'},
    [layouts.box(1, 1, [1, 2, 3, 4])],
    NAMES,
  )
  for other, message in (
    (
      made(tmp_path / 'other', tmp_path / 'out', split='val2017', task='detection'),
      'a build of root',
    ),
    (made(coco, tmp_path / 'out', split='val2017', task='counting'), "a build of task 'detection'"),
    (made(coco, tmp_path / 'out', split='val2017', task='detection', shard=8), 'another --shard'),
  ):
    with pytest.raises(SphinxError, match=message):
      run(other)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/thesis.txt').write_text('mine')
  with pytest.raises(SphinxError, match='files that are no build'):
    run(made(coco, tmp_path / 'full', split='val2017', task='detection'))
  next((tmp_path / 'out').glob('*00002-of*')).unlink()
  with pytest.raises(SphinxError, match='without 1 of its shards'):
    run(build)


def test_splits_of_one_dataset_share_a_folder(coco, tmp_path):
  boxes = [layouts.box(i, 1, [1, 2, 3, 4]) for i in (98, 99)]
  layouts.coco(coco, 'instances', 'train2017', {99: 'a.jpg', 98: 'b.jpg'}, boxes, NAMES)
  run(made(coco, tmp_path / 'out', split='val2017', task='detection'))
  assert (
    len(sources.open_source(dict(source='array_record', root='out', task='detection'), tmp_path))
    == 13
  )
  half = made(coco, tmp_path / 'out', split='train2017', task='detection', shard=1)
  shards = building.plan(half)
  built_folder.claim(half, shards)
  building.write(half, shards[0])
  assert (
    len(
      sources.open_source(
        dict(source='array_record', root='out', split='val2017', task='detection'), tmp_path
      )
    )
    == 13
  )
  with pytest.raises(SphinxError, match="unfinished split 'train2017'"):
    built_folder.claim(made(coco, tmp_path / 'out', split='train2014', task='detection'), shards)
  run(half)
  for name, count in (('val2017', 13), ('train2017', 2)):
    assert (
      len(
        sources.open_source(
          dict(source='array_record', root='out', split=name, task='detection'), tmp_path
        )
      )
      == count
    )
  for entry, message in (
    (dict(split='tset', task='detection'), "'tset', expected one of train2017, val2017"),
    (dict(split='val2017', task='pose'), "'detection', as it was prepared"),
    (dict(task='detection'), 'expected one of train2017, val2017'),
  ):
    with pytest.raises(SphinxError, match=message):
      sources.open_source(dict(source='array_record', root='out', **entry), tmp_path)


def test_every_tar_is_a_shard_and_a_damaged_one_is_told(tmp_path):
  for i in range(4):
    tar(tmp_path / 'laion', f'0000{i}.tar')
  cut = tmp_path / 'laion/00001.tar'
  cut.write_bytes(cut.read_bytes()[:8000])
  (tmp_path / 'laion/00002.tar').write_bytes(b'')
  split = run(
    made(tmp_path / 'laion', tmp_path / 'out', 'laion', settings={'caption': 'top_caption'})
  )
  assert split['lengths'] == [3, 1, 0, 3] and split['items'] - split['records'] == sum(
    split['skipped'].values()
  )
  assert len(split['damaged']) == 2 and 'damaged files' in built_folder.table(split)
  built = sources.open_source(dict(source='array_record', root='out', task='caption'), tmp_path)
  assert [built[i].turns[0][1] for i in (0, 6)] == ['a tree, 0', 'a tree, 2'] and built[
    6
  ].id == '00003/000030002'


def test_texts_have_no_picture_and_odd_names_survive(tmp_path):
  said = [{'from': 'human', 'value': 'Grüße 🌳 \ud800'}, {'from': 'gpt', 'value': 'NaN'}]
  (tmp_path / 'chat').mkdir()
  dialogs = [{'id': 'ü\ud800', 'conversations': said}, {'id': 'none', 'conversations': []}]
  (tmp_path / 'chat/sharegpt.json').write_text(json.dumps(dialogs))
  split = run(made(tmp_path / 'chat', tmp_path / 'out', 'sharegpt'))
  assert split['records'] == 1 and split['skipped'] == {'empty answer': 1}
  built = sources.open_source(dict(source='array_record', root='out', task='dialog'), tmp_path)
  straight = sources.open_source(dict(source='sharegpt', root='chat'), tmp_path)
  assert (
    built[0].image is None and built[0].turns == straight[0].turns and built[0].id == 'ü\\ud800'
  )


def test_nothing_to_build_is_an_error(tmp_path):
  (tmp_path / 'laion').mkdir()
  (tmp_path / 'laion/00000.tar').write_bytes(b'')
  with pytest.raises(SphinxError, match='no record of 0 items .*without a sample'):
    run(made(tmp_path / 'laion', tmp_path / 'out', 'laion'))
  for arguments, message in (
    (dict(source='laoin'), "did you mean 'laion'"),
    (dict(source='laion', name='LAION 400M'), 'small letters'),
    (dict(source='array_record'), 'copy the folder'),
    (dict(source='laion', split='test'), "split of source 'laion'"),
  ):
    with pytest.raises(SphinxError, match=message):
      building.plan(made(tmp_path / 'laion', tmp_path / 'out', **arguments))


def test_what_is_no_build_or_a_damaged_one_is_told(coco, tmp_path):
  entry = dict(source='array_record', root='out', split='val2017', task='detection')
  (tmp_path / 'out').mkdir()
  with pytest.raises(SphinxError, match='no build.json'):
    sources.open_source(entry, tmp_path)
  run(made(coco, tmp_path / 'made', split='val2017', task='detection'))
  for harm, message in (
    (lambda f: (f / 'build.json').write_text('[]'), 'damaged build.json'),
    (lambda f: (f / 'features.json').write_text('{'), 'on opening'),
    (lambda f: next(f.glob('*00001-of*')).unlink(), '1 of 5 shards are not in'),
  ):
    folder = tmp_path / f'harmed {message}'
    folder.mkdir()
    for path in (tmp_path / 'made').iterdir():
      (folder / path.name).write_bytes(path.read_bytes())
    harm(folder)
    with pytest.raises(SphinxError, match=message):
      sources.open_source(entry | dict(root=folder.name), tmp_path)


def _stand_in():
  """What of Beam's interface is used, for where Beam cannot be installed beside our pins: shards and function are pickled."""

  class Pipeline:
    def __init__(self, options):
      self.options = options
      log.append(options.flags)

    def __enter__(self):
      return Values(None)

    def __exit__(self, *_):
      pass

  class Values:
    def __init__(self, values):
      self.values = values

    def __or__(self, step):
      return Values(step(self.values))

  class Step:
    def __init__(self, call):
      self.call = call

    def __call__(self, values):
      return self.call(values)

    def __rrshift__(self, label):
      return self

  log = []
  beam = types.ModuleType('apache_beam')
  beam.Pipeline, beam.log = Pipeline, log
  beam.Create = lambda values: Step(lambda _: pickle.loads(pickle.dumps(values)))
  beam.Reshuffle = lambda: Step(lambda values: values[::-1])
  beam.Map = lambda function: Step(
    lambda values: [pickle.loads(pickle.dumps(function))(value) for value in values]
  )
  options = types.ModuleType('apache_beam.options.pipeline_options')
  options.PipelineOptions = lambda flags: types.SimpleNamespace(flags=flags)
  return {
    'apache_beam': beam,
    'apache_beam.options': types.ModuleType('apache_beam.options'),
    'apache_beam.options.pipeline_options': options,
  }


def test_beam_writes_the_same_shards(tmp_path, monkeypatch):
  for i in range(3):
    tar(tmp_path / 'laion', f'0000{i}.tar')
  run(made(tmp_path / 'laion', tmp_path / 'whole', 'laion'))
  build = made(tmp_path / 'laion', tmp_path / 'out', 'laion')
  with contextlib.suppress(ImportError):
    pass  # The real one is used where it is.
  if 'apache_beam' not in sys.modules:
    for name, module in _stand_in().items():
      monkeypatch.setitem(sys.modules, name, module)
  shards = building.plan(build)
  built_folder.claim(build, shards)
  building.write(build, shards[1])  # As an interrupted run leaves it.
  build_runners.beam(build, shards, 'DirectRunner', ['direct_num_workers=1'])
  built_folder.finish(build, shards)
  assert bytes_of(tmp_path / 'out') == bytes_of(tmp_path / 'whole')
  flags = getattr(
    sys.modules['apache_beam'], 'log', [['--runner=DirectRunner', '--direct_num_workers=1']]
  )
  assert flags == [['--runner=DirectRunner', '--direct_num_workers=1']]


def test_without_beam_the_error_says_so(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(SphinxError, match='no Apache Beam here'):
    build_runners.beam(made('x', tmp_path / 'out', 'laion'), [], 'DirectRunner', [])


def test_the_door(tmp_path):
  for i in range(2):
    tar(tmp_path / 'laion', f'0000{i}.tar')

  def door(*arguments):
    return subprocess.run(
      [
        sys.executable,
        '-m',
        'sphinx_jax.prepare',
        '--source=laion',
        f'--root={tmp_path / "laion"}',
        *arguments,
      ],
      cwd=ROOT,
      capture_output=True,
      text=True,
      timeout=120,
    )

  done = door(f'--output={tmp_path / "out"}', '--set=caption=top_caption', '--processes=1')
  assert (
    done.returncode == 0 and 'written and verified' in done.stdout and 'records' in done.stdout
  ), done.stderr
  assert (
    json.loads((tmp_path / 'out/build.json').read_text())['identity']['settings']
    == '{"caption": "top_caption"}'
  )
  again = door(f'--output={tmp_path / "out"}', '--set=caption=top_caption')
  assert again.returncode == 0 and 'found there, finished' in again.stdout
  for arguments, message in (
    ([f'--output={tmp_path / "out"}'], 'error: build in'),
    (['--output=x', '--set=caption'], "error: --set: got 'caption'"),
    ([], 'error: '),
  ):
    wrong = door(*arguments)
    assert wrong.returncode == 2 and message in wrong.stderr and 'Traceback' not in wrong.stderr
