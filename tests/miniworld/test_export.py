"""Miniworld written as dataset files: their sources agree with miniworld's own source."""

import json

import numpy as np
import pytest

from sphinx_jax import datasets
from sphinx_jax.configs import mini
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.miniworld import Miniworld
from sphinx_jax.miniworld import builder, export
from sphinx_jax.tasks import TASKS

KINDS = dict(objects=20, words=8, page=8, figure=8, text=30)


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  builder.build(folder, {split: KINDS for split in ('train', 'validation', 'test')})
  export.write(folder, folder / 'official')
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
  'entry',
  [pytest.param(entry, id=name) for name, entry in entries(mini.get_config('dataset_files'))],
)
def test_every_source_of_the_recipe_reads_its_files(entry, data_dir):
  source = datasets.open_source(entry, data_dir)
  scored = best = 0
  for record in (source[index] for index in range(len(source))):
    if record.images:
      assert images.decode(record.images[0]).shape == (64, 64, 3)
    for (_, answer), truth in zip(record.turns, record.truth):
      numerator, denominator = TASKS[record.task].score(answer, truth)
      scored, best = scored + numerator, best + denominator
  # Answers have two decimals, and the XML of Flickr30k whole pixels of 64.
  assert scored >= 0.97 * best and (best > 0) == (entry['task'] not in ('text', 'dialog'))
  assert not source.dropped


def scene_annotations(task, data_dir, split):
  source = Miniworld(task, data_dir, split)
  return [source.annotation(index) for index in range(len(source))]


def read_records(entry, data_dir):
  source = datasets.open_source(entry, data_dir)
  return [source[index] for index in range(len(source))]


@pytest.mark.parametrize(
  'task, things', [('layout', 'blocks'), ('grounded_caption', 'objects'), ('detection', 'objects')]
)
@pytest.mark.parametrize('split', ['train', 'test'])
def test_boxes_are_those_of_the_scenes(task, things, split, data_dir):
  config = mini.get_config('dataset_files').stage2
  records = read_records(
    (config.mixture if split == 'train' else config.validation)[task].to_dict(), data_dir
  )
  scenes = scene_annotations(task, data_dir, split)
  assert len(records) == len(scenes)
  complete = 0
  for record, scene in zip(records, scenes):
    named = [
      (thing.get('label') or f'{thing["color"]} {thing["name"]}', thing['box'])
      for thing in scene[things]
    ]
    # The boxes of all classes, or of some.
    labeled = [pair for truth in record.truth for pair in zip(truth['labels'], truth['boxes'])]
    for label, box in labeled:
      distance = min(
        np.abs(np.subtract(box, other)).max() for name, other in named if name.endswith(label)
      )
      assert distance <= (0.5 / 64 + 1e-3 if task == 'grounded_caption' else 1e-3)
    complete += len(labeled) == len(named)
  assert complete == len(scenes) if task == 'grounded_caption' else complete > len(scenes) / 4


def test_joints_are_those_of_the_figures(data_dir):
  records = read_records(mini.get_config('dataset_files').stage2.mixture.pose.to_dict(), data_dir)
  for record, scene in zip(records, scene_annotations('pose', data_dir, 'train'), strict=True):
    (person,) = scene['people']
    joints = record.truth[0].get('keypoints') or record.truth[0]['people'][0]['keypoints']
    want = [point[:2] for point in person['keypoints'] if point[2] > 0]
    assert np.allclose(list(joints.values()), want, atol=1e-3)


def test_captions_of_both_domains_are_those_of_the_scenes(data_dir):
  config = mini.get_config('dataset_files')
  for domain in ('real', 'synthetic'):
    records = read_records(config[domain].mixture.caption.to_dict(), data_dir)
    assert [record.turns[0][1] for record in records] == [
      a[f'caption_{domain}'] for a in scene_annotations('caption', data_dir, 'train')
    ]


def test_splits_share_no_image(data_dir):
  config = mini.get_config('dataset_files').stage2
  for task in mini.DATASET_FILES:
    seen, held_out = (
      {record.images or record.turns for record in read_records(part[task].to_dict(), data_dir)}
      for part in (config.mixture, config.validation)
    )
    assert seen and held_out and not seen & held_out


def test_writing_again_gives_the_same_files(data_dir, tmp_path):
  export.write(data_dir, tmp_path)
  export.write(data_dir, tmp_path)
  for path in (
    path
    for path in (data_dir / 'official').rglob('*')
    if path.is_file() and path.suffix in ('.json', '.p', '.txt', '.xml', '.jpg')
  ):
    assert path.read_bytes() == (tmp_path / path.relative_to(data_dir / 'official')).read_bytes(), (
      path
    )


def test_a_missing_image_is_one_bad_example(data_dir, tmp_path):
  export.write(data_dir, tmp_path / 'official')
  first = json.loads((tmp_path / 'official/coco/annotations/instances_train2014.json').read_text())[
    'images'
  ][0]
  (tmp_path / 'official/coco/train2014' / first['file_name']).unlink()
  source = datasets.open_source(
    mini.get_config('dataset_files').stage2.mixture.detection.to_dict(), tmp_path
  )
  bad = []
  for index in range(len(source)):
    try:
      source[index]
    except BadExample as error:
      bad.append(error.reason)
  assert bad == ['missing image'] and len(source) == KINDS['objects']
