"""Miniworld written as official datasets: their sources say of it what miniworld's own says."""

import json

import numpy as np
import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.configs import mini
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.miniworld import Miniworld
from sphinx_jax.miniworld import builder, export as official
from sphinx_jax.tasks import TASKS

KINDS = dict(objects=20, words=8, page=8, figure=8, text=30)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  builder.build(folder, {split: KINDS for split in ('train', 'validation', 'test')})
  official.write(folder, folder / 'official')
  return folder


def entries(config):
  stages = {
    'real': config.real.mixture,
    'synthetic': config.synthetic.mixture,
    'stage2': config.stage2.mixture,
    'held out': config.stage2.validation,
    'captions held out': config.real.validation,
  }
  return [
    (f'{stage} {name}', entry.to_dict())
    for stage, mixture in stages.items()
    for name, entry in mixture.items()
  ]


@pytest.mark.parametrize(
  'entry', [pytest.param(entry, id=name) for name, entry in entries(mini.get_config('official'))]
)
def test_every_source_of_the_recipe_reads_its_files(entry, data_dir):
  source = sources.open_source(entry, data_dir)
  got = most = 0
  for record in (source[index] for index in range(len(source))):
    if record.image is not None:
      assert images.decode(record.image).shape == (64, 64, 3)
    for (_, answer), truth in zip(record.turns, record.truth):
      numerator, denominator = TASKS[record.task].score(answer, truth)
      got, most = got + numerator, most + denominator
  # Answers have two decimals, and the XML of Flickr30k whole pixels of 64.
  assert got >= 0.97 * most and (most > 0) == (entry['task'] not in ('text', 'dialog'))
  assert not source.dropped


def ours(task, data_dir, split):
  source = Miniworld(task, data_dir, split)
  return [source.annotation(index) for index in range(len(source))]


def said(entry, data_dir):
  source = sources.open_source(entry, data_dir)
  return [source[index] for index in range(len(source))]


@pytest.mark.parametrize(
  'task, things', [('layout', 'blocks'), ('grounded_caption', 'objects'), ('detection', 'objects')]
)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_boxes_are_those_of_the_scenes(task, things, split, data_dir):
  config = mini.get_config('official').stage2
  records = said(
    (config.mixture if split == 'train' else config.validation)[task].to_dict(), data_dir
  )
  scenes = ours(task, data_dir, split)
  assert len(records) == len(scenes)
  complete = 0
  for record, scene in zip(records, scenes):
    named = [
      (thing.get('label') or f'{thing["color"]} {thing["name"]}', thing['box'])
      for thing in scene[things]
    ]
    told = [
      pair for truth in record.truth for pair in zip(truth['labels'], truth['boxes'])
    ]  # Of all classes, or of some.
    for label, box in told:
      distance = min(
        np.abs(np.subtract(box, other)).max() for name, other in named if name.endswith(label)
      )
      assert distance <= (0.5 / 64 + 1e-3 if task == 'grounded_caption' else 1e-3)
    complete += len(told) == len(named)
  assert complete == len(scenes) if task == 'grounded_caption' else complete > len(scenes) / 4


def test_joints_are_those_of_the_figures(data_dir):
  records = said(mini.get_config('official').stage2.mixture.pose.to_dict(), data_dir)
  for record, scene in zip(records, ours('pose', data_dir, 'train'), strict=True):
    (person,) = scene['people']
    joints = record.truth[0].get('keypoints') or record.truth[0]['people'][0]['keypoints']
    want = [point[:2] for point in person['keypoints'] if point[2] > 0]
    assert np.allclose(list(joints.values()), want, atol=1e-3)


def test_captions_of_both_domains_are_those_of_the_scenes(data_dir):
  config = mini.get_config('official')
  for domain in ('real', 'synthetic'):
    records = said(config[domain].mixture.caption.to_dict(), data_dir)
    assert [record.turns[0][1] for record in records] == [
      a[f'caption_{domain}'] for a in ours('caption', data_dir, 'train')
    ]


def test_splits_share_no_picture(data_dir):
  config = mini.get_config('official').stage2
  for task in mini.DATASET_FILES:
    seen, held_out = (
      {record.image or record.turns for record in said(part[task].to_dict(), data_dir)}
      for part in (config.mixture, config.validation)
    )
    assert seen and held_out and not seen & held_out


def test_writing_again_gives_the_same_files(data_dir, tmp_path):
  official.write(data_dir, tmp_path)
  official.write(data_dir, tmp_path)
  for path in (
    path
    for path in (data_dir / 'official').rglob('*')
    if path.is_file() and path.suffix in ('.json', '.p', '.txt', '.xml', '.jpg')
  ):
    assert path.read_bytes() == (tmp_path / path.relative_to(data_dir / 'official')).read_bytes(), (
      path
    )


def test_a_lost_picture_is_one_bad_example(data_dir, tmp_path):
  official.write(data_dir, tmp_path / 'official')
  first = json.loads((tmp_path / 'official/coco/annotations/instances_train2014.json').read_text())[
    'images'
  ][0]
  (tmp_path / 'official/coco/train2014' / first['file_name']).unlink()
  source = sources.open_source(
    mini.get_config('official').stage2.mixture.detection.to_dict(), tmp_path
  )
  bad = []
  for index in range(len(source)):
    try:
      source[index]
    except BadExample as error:
      bad.append(error.reason)
  assert bad == ['missing image'] and len(source) == KINDS['objects']
