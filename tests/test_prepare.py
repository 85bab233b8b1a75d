"""Preparing a dataset: the records of its files, for any runner and after any interruption."""

import dataclasses
import importlib.util
import io
import json
import multiprocessing
import os
import pathlib
import pickle
import signal
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from sphinx_jax import datasets
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import images
from sphinx_jax.datasets.files import opened_files
from sphinx_jax.preparation import plan, runners, verify, write
from tests.datasets import box_trees, image_files
from tests.datasets.test_laion import tar

ROOT = pathlib.Path(__file__).parent.parent
NAMES = ('person', 'dog')


@pytest.fixture
def coco(tmp_path):
  """17 images with boxes. Some are in other color modes, and some are unusable."""
  images = {i: f'{i:012d}.jpg' for i in range(17)}
  boxes = [box_trees.box(i, 1 + i % 2, [i, 2, 10, 12.5]) for i in range(17)] + [
    box_trees.box(3, 2, [-4, 1, 99, 99], crowd=1)
  ]
  root = box_trees.coco(tmp_path / 'coco', 'instances', 'val2017', images, boxes, NAMES)
  for i, data in {
    2: image_files.encoded(mode='CMYK'),
    5: image_files.encoded(mode='L'),
    7: image_files.truncated(),
    9: b'',
    11: b'no image',
  }.items():
    image_files.write(root / 'val2017' / images[i], data)
  (root / 'val2017' / images[13]).unlink()
  return root


def make_build(root, output, source='coco', shard_size=4, **more):
  return plan.make_build(source, str(root), str(output), shard_size=shard_size, **more)


def run(build, processes=1):
  shards = plan.plan_shards(build)
  split = verify.claim(build, shards)
  if split is None:
    runners.run_local(build, shards, processes)
    split = verify.finish(build, shards)
  return split


def with_images(outline):
  """The record of an outline: its images are read, of which it knows the sizes."""
  encoded = tuple(image.read() for image in outline.images)
  assert [image.size() for image in outline.images] == [images.size(data) for data in encoded]
  return dataclasses.replace(outline, images=encoded)


def bytes_of(folder):
  return {path.name: path.read_bytes() for path in sorted(folder.glob('*.array_record*'))}


def test_a_build_has_the_records_of_the_files_and_counts_the_rest(coco, tmp_path):
  build = make_build(coco, tmp_path / 'out', split='val2017', task='detection')
  split = run(build)
  assert (split['items'], split['records'], split['shards']) == (17, 13, 5)
  assert split['lengths'] == [4, 3, 2, 3, 1]
  assert split['skipped'] == {'unreadable image': 2, 'empty image': 1, 'missing image': 1}
  assert '000000000013.jpg' in split['first']['missing image']
  from_files = datasets.open_source(
    dict(source='coco', root='coco', split='val2017', task='detection', seed=1), tmp_path
  )
  prepared = datasets.open_source(
    dict(source='array_record', root='out', split='val2017', task='detection'), tmp_path
  )
  assert prepared.name == 'array_record' and len(prepared) == 13
  good = [i for i in range(17) if i not in (7, 9, 11, 13)]
  for place, index in reversed(list(enumerate(good))):
    item, kept = from_files.family.item(index), prepared.family.item(place)
    assert kept.id == item.id and kept.annotation == json.loads(json.dumps(item.annotation))
    assert kept.images == tuple(image.read_bytes() for image in item.images)
    assert prepared[place].truth and prepared[place].images == from_files[index].images
    for source, number in ((from_files, index), (prepared, place)):
      assert with_images(source.outline(number, 0)) == source[number]
  table = verify.table(split)
  assert 'skipped: unreadable image' in table and '17' in table and '13' in table


def test_an_outline_reads_no_image_and_old_builds_have_none(coco, tmp_path, monkeypatch):
  entry = dict(source='array_record', root='out', split='val2017', task='detection')
  run(make_build(coco, tmp_path / 'out', split='val2017', task='detection'))
  prepared = datasets.open_source(entry, tmp_path)
  record = prepared[2]
  monkeypatch.setattr(prepared.family, '_rows', None)
  assert prepared.outline(2, 0).turns == record.turns
  for path in (tmp_path / 'out').glob('*.outlines'):
    path.unlink()
  assert datasets.open_source(entry, tmp_path).outline(2, 0) == record


def test_tfds_reads_a_build_by_itself(coco, tmp_path):
  import tensorflow_datasets as tfds

  run(make_build(coco, tmp_path / 'out', split='val2017', task='detection'))
  builder = tfds.builder_from_directory(tmp_path / 'out')
  assert builder.info.splits['val2017'].num_examples == 13 and builder.info.name == 'coco'
  row = builder.as_data_source('val2017')[0]
  assert np.array_equal(row['image'], np.asarray(Image.open(io.BytesIO(image_files.encoded()))))
  assert row['size'].tolist() == [40, 30]


def test_an_interrupted_build_resumes_and_any_number_of_processes_writes_the_same_bytes(
  coco, tmp_path, monkeypatch
):
  run(make_build(coco, tmp_path / 'whole', split='val2017', task='detection'))
  build = make_build(coco, tmp_path / 'out', split='val2017', task='detection')
  record, seen = write._record, []

  def interrupted(item):
    seen.append(item.id)
    if len(seen) == 10:
      raise KeyboardInterrupt
    return record(item)

  monkeypatch.setattr(write, '_record', interrupted)
  with pytest.raises(KeyboardInterrupt):
    run(build)
  first = bytes_of(tmp_path / 'out')
  assert len(first) == 2
  times = {name: os.stat(tmp_path / 'out' / name).st_mtime_ns for name in first}
  with pytest.raises(SphinxError, match='2 of 5 shards'):
    verify.finish(build, plan.plan_shards(build))
  monkeypatch.setattr(write, '_record', record)
  run(build)
  assert bytes_of(tmp_path / 'out') == bytes_of(tmp_path / 'whole')
  assert times == {name: os.stat(tmp_path / 'out' / name).st_mtime_ns for name in first}
  run(make_build(coco, tmp_path / 'spread', split='val2017', task='detection'), processes=2)
  assert bytes_of(tmp_path / 'spread') == bytes_of(tmp_path / 'whole')
  assert not [path for path in (tmp_path / 'out').iterdir() if path.name.startswith('.')]


def test_a_shard_that_was_damaged_while_building_is_written_again(coco, tmp_path, monkeypatch):
  build = make_build(coco, tmp_path / 'out', split='val2017', task='detection')
  shards = plan.plan_shards(build)
  assert verify.claim(build, shards) is None
  runners.run_local(build, shards, 1)
  whole = bytes_of(tmp_path / 'out')
  damaged = plan.shard_path(build, shards[1])
  damaged.write_bytes(damaged.read_bytes()[:-7])
  plan.shard_path(build, shards[2]).unlink()
  runners.run_local(build, shards, 1)
  assert bytes_of(tmp_path / 'out') == whole
  other_shard = plan.shard_path(build, shards[4]).read_bytes()  # Fewer records, same size.
  plan.shard_path(build, shards[0]).write_bytes(other_shard)
  with pytest.raises(SphinxError, match='records in the file: 1, expected 4'):
    verify.finish(build, shards)


def test_a_finished_build_is_recognized_and_others_are_refused(coco, tmp_path):
  build = make_build(coco, tmp_path / 'out', split='val2017', task='detection')
  split, before = run(build), bytes_of(tmp_path / 'out')
  assert run(build) == split and bytes_of(tmp_path / 'out') == before
  box_trees.coco(
    tmp_path / 'other',
    'instances',
    'val2017',
    {1: 'a.jpg'},
    [box_trees.box(1, 1, [1, 2, 3, 4])],
    NAMES,
  )
  for other, message in (
    (
      make_build(tmp_path / 'other', tmp_path / 'out', split='val2017', task='detection'),
      'a build of root',
    ),
    (
      make_build(coco, tmp_path / 'out', split='val2017', task='counting'),
      "a build of task 'detection'",
    ),
    (
      make_build(coco, tmp_path / 'out', split='val2017', task='detection', shard_size=8),
      'another --shard',
    ),
  ):
    with pytest.raises(SphinxError, match=message):
      run(other)
  (tmp_path / 'full').mkdir()
  (tmp_path / 'full/thesis.txt').write_text('mine')
  with pytest.raises(SphinxError, match='files that do not belong to a build'):
    run(make_build(coco, tmp_path / 'full', split='val2017', task='detection'))
  next((tmp_path / 'out').glob('*array_record-00002-of*')).unlink()
  with pytest.raises(SphinxError, match='without 1 of its shards'):
    run(build)


def test_a_build_of_files_that_changed_since_is_refused(coco, tmp_path, monkeypatch):
  build = make_build(coco, tmp_path / 'out', split='val2017', task='detection')

  def begun():
    with opened_files() as source_files:
      shards = plan.plan_shards(build)
    return verify.claim(build, shards, source_files)

  assert begun() is None
  annotations = coco / 'annotations' / 'instances_val2017.json'
  text = annotations.read_text()
  annotations.write_text(text.replace('12.5', '12.4'))
  plan.open_family.cache_clear()
  with pytest.raises(SphinxError, match=r'files changed since it was begun: .*val2017.json'):
    begun()
  annotations.write_text(text)
  plan.open_family.cache_clear()
  assert begun() is None
  state = json.loads((tmp_path / 'out/build.json').read_text())
  del state['splits']['val2017']['files']  # As an older version wrote it.
  (tmp_path / 'out/build.json').write_text(json.dumps(state))
  annotations.write_text(text.replace('12.5', '12.4'))
  plan.open_family.cache_clear()
  assert begun() is None


def test_a_worker_that_is_killed_is_one_line_and_ends_the_others(coco, tmp_path, monkeypatch):
  build = make_build(coco, tmp_path / 'out', split='val2017', task='detection')
  shards = plan.plan_shards(build)
  verify.claim(build, shards)
  monkeypatch.setattr(runners, '_write_in_worker', _die)
  with pytest.raises(SphinxError, match='worker process that was killed'):
    runners.run_local(build, shards, 2)
  for process in multiprocessing.active_children():
    process.join(10)
    assert not process.is_alive()


def _die(build, shard):
  os.kill(os.getpid(), signal.SIGKILL)


def test_splits_of_one_dataset_share_a_folder(coco, tmp_path):
  boxes = [box_trees.box(i, 1, [1, 2, 3, 4]) for i in (98, 99)]
  box_trees.coco(coco, 'instances', 'train2017', {99: 'a.jpg', 98: 'b.jpg'}, boxes, NAMES)
  run(make_build(coco, tmp_path / 'out', split='val2017', task='detection'))
  assert (
    len(datasets.open_source(dict(source='array_record', root='out', task='detection'), tmp_path))
    == 13
  )
  half = make_build(coco, tmp_path / 'out', split='train2017', task='detection', shard_size=1)
  shards = plan.plan_shards(half)
  verify.claim(half, shards)
  write.write_shard(half, shards[0])
  assert (
    len(
      datasets.open_source(
        dict(source='array_record', root='out', split='val2017', task='detection'), tmp_path
      )
    )
    == 13
  )
  with pytest.raises(SphinxError, match="unfinished split 'train2017'"):
    verify.claim(make_build(coco, tmp_path / 'out', split='train2014', task='detection'), shards)
  run(half)
  for name, count in (('val2017', 13), ('train2017', 2)):
    assert (
      len(
        datasets.open_source(
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
      datasets.open_source(dict(source='array_record', root='out', **entry), tmp_path)


def test_every_tar_is_a_shard_and_a_damaged_one_is_reported(tmp_path):
  for i in range(4):
    tar(tmp_path / 'laion', f'0000{i}.tar')
  cut = tmp_path / 'laion/00001.tar'
  cut.write_bytes(cut.read_bytes()[:8000])
  (tmp_path / 'laion/00002.tar').write_bytes(b'')
  split = run(
    make_build(tmp_path / 'laion', tmp_path / 'out', 'laion', settings={'caption': 'top_caption'})
  )
  assert split['lengths'] == [3, 1, 0, 3] and split['items'] - split['records'] == sum(
    split['skipped'].values()
  )
  assert len(split['damaged']) == 2 and 'damaged files' in verify.table(split)
  prepared = datasets.open_source(dict(source='array_record', root='out', task='caption'), tmp_path)
  assert [prepared[i].turns[0][1] for i in (0, 6)] == ['a tree, 0', 'a tree, 2'] and prepared[
    6
  ].id == '00003/000030002'


def test_all_images_of_a_record_are_kept(tmp_path):
  turns = [{'from': 'human', 'value': '<image> or <image>'}, {'from': 'gpt', 'value': 'Both.'}]
  for seed, name in enumerate(('a.png', 'b.png', 'c.png')):
    image_files.write(tmp_path / 'llava' / name, image_files.truncated() if seed == 2 else None)
  items = [
    {'id': str(i), 'image': ['a.png', name], 'conversations': turns}
    for i, name in enumerate(('b.png', 'c.png'))
  ]
  (tmp_path / 'llava/llava_instruct_150k.json').write_text(json.dumps(items))
  split = run(make_build(tmp_path / 'llava', tmp_path / 'out', 'llava'))
  assert split['records'] == 1 and split['skipped'] == {'unreadable image': 1}
  prepared = datasets.open_source(dict(source='array_record', root='out', task='dialog'), tmp_path)
  from_files = datasets.open_source(dict(source='llava', root='llava'), tmp_path)
  assert prepared[0] == from_files[0] and len(prepared[0].images) == 2


def test_texts_have_no_image_and_odd_names_survive(tmp_path):
  turns = [{'from': 'human', 'value': 'Grüße 🌳 \ud800'}, {'from': 'gpt', 'value': 'NaN'}]
  (tmp_path / 'chat').mkdir()
  dialogs = [{'id': 'ü\ud800', 'conversations': turns}, {'id': 'none', 'conversations': []}]
  (tmp_path / 'chat/sharegpt.json').write_text(json.dumps(dialogs))
  split = run(make_build(tmp_path / 'chat', tmp_path / 'out', 'sharegpt'))
  assert split['records'] == 1 and split['skipped'] == {'empty answer': 1}
  prepared = datasets.open_source(dict(source='array_record', root='out', task='dialog'), tmp_path)
  from_files = datasets.open_source(dict(source='sharegpt', root='chat'), tmp_path)
  assert (
    not prepared[0].images
    and prepared[0].turns == from_files[0].turns
    and prepared[0].id == 'ü\\ud800'
  )


def test_nothing_to_build_is_an_error(tmp_path):
  (tmp_path / 'laion').mkdir()
  (tmp_path / 'laion/00000.tar').write_bytes(b'')
  with pytest.raises(SphinxError, match='no record of 0 items .*without a sample'):
    run(make_build(tmp_path / 'laion', tmp_path / 'out', 'laion'))
  for arguments, message in (
    (dict(source='laoin'), "did you mean 'laion'"),
    (dict(source='laion', name='LAION 400M'), 'small letters'),
    (dict(source='array_record'), 'copy the folder'),
    (dict(source='laion', split='test'), "split of source 'laion'"),
  ):
    with pytest.raises(SphinxError, match=message):
      plan.plan_shards(make_build(tmp_path / 'laion', tmp_path / 'out', **arguments))


def test_a_folder_without_a_build_or_with_a_damaged_one_is_refused(coco, tmp_path):
  entry = dict(source='array_record', root='out', split='val2017', task='detection')
  (tmp_path / 'out').mkdir()
  with pytest.raises(SphinxError, match='no build.json'):
    datasets.open_source(entry, tmp_path)
  run(make_build(coco, tmp_path / 'made', split='val2017', task='detection'))
  for harm, message in (
    (lambda f: (f / 'build.json').write_text('[]'), 'damaged build.json'),
    (lambda f: (f / 'features.json').write_text('{'), 'on opening'),
    (lambda f: next(f.glob('*array_record-00001-of*')).unlink(), '1 of 5 shards are not in'),
  ):
    folder = tmp_path / f'harmed {message}'
    folder.mkdir()
    for path in (tmp_path / 'made').iterdir():
      (folder / path.name).write_bytes(path.read_bytes())
    harm(folder)
    with pytest.raises(SphinxError, match=message):
      datasets.open_source(entry | dict(root=folder.name), tmp_path)


def _stand_in():
  """The part of Beam's interface that is used; shards and function are pickled.

  Beam itself cannot be installed together with our pinned versions.
  """

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
  run(make_build(tmp_path / 'laion', tmp_path / 'whole', 'laion'))
  build = make_build(tmp_path / 'laion', tmp_path / 'out', 'laion')
  installed = importlib.util.find_spec('apache_beam') is not None
  if not installed:
    for name, module in _stand_in().items():
      monkeypatch.setitem(sys.modules, name, module)
  shards = plan.plan_shards(build)
  verify.claim(build, shards)
  write.write_shard(build, shards[1])  # As an interrupted run leaves it.
  runners.run_beam(build, shards, 'DirectRunner', ['direct_num_workers=1'])
  verify.finish(build, shards)
  assert bytes_of(tmp_path / 'out') == bytes_of(tmp_path / 'whole')
  if not installed:
    flags = sys.modules['apache_beam'].log
    assert flags == [['--runner=DirectRunner', '--direct_num_workers=1']]


def test_without_beam_the_error_says_so(monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(SphinxError, match='without Apache Beam'):
    runners.run_beam(make_build('x', tmp_path / 'out', 'laion'), [], 'DirectRunner', [])


def test_the_command(tmp_path):
  for i in range(2):
    tar(tmp_path / 'laion', f'0000{i}.tar')

  def command(*arguments):
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

  done = command(f'--output={tmp_path / "out"}', '--set=caption=top_caption', '--processes=1')
  assert (
    done.returncode == 0 and 'written and verified' in done.stdout and 'records' in done.stdout
  ), done.stderr
  assert (
    json.loads((tmp_path / 'out/build.json').read_text())['identity']['settings']
    == '{"caption": "top_caption"}'
  )
  again = command(f'--output={tmp_path / "out"}', '--set=caption=top_caption')
  assert again.returncode == 0 and 'already finished' in again.stdout
  for arguments, message in (
    ([f'--output={tmp_path / "out"}'], 'error: build in'),
    (['--output=x', '--set=caption'], "error: --set: got 'caption'"),
    ([], 'error: '),
  ):
    wrong = command(*arguments)
    assert wrong.returncode == 2 and message in wrong.stderr and 'Traceback' not in wrong.stderr


def test_a_flag_that_is_given_as_a_setting_is_refused(tmp_path):
  build = make_build(tmp_path, tmp_path / 'out', 'coco', settings={'split': 'val2017'})
  with pytest.raises(SphinxError, match="got the setting 'split', expected no settings"):
    plan.plan_shards(build)
