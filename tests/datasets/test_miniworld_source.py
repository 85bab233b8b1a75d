"""The miniworld source: random access, deterministic records, clear errors."""

import io
import json

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sphinx_jax import tasks
from sphinx_jax.core import errors
from sphinx_jax.data import record
from sphinx_jax.datasets import SOURCES, miniworld, open_source
from sphinx_jax.miniworld import builder, corpus, scene

SIZES = {
  split: {'objects': 12, 'words': 5, 'page': 5, 'figure': 5, 'text': 9} for split in scene.SPLITS
}


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  folder = tmp_path_factory.mktemp('data')
  builder.build(folder, SIZES, seed=2)
  return folder


def entry(task, **more):
  return ConfigDict({'source': 'miniworld', 'task': task, 'weight': 1.0, **more})


def records(source):
  """All records, a bad one as its reason."""
  found = []
  for index in range(len(source)):
    try:
      found.append(source[index])
    except record.BadExample as bad:
      found.append(bad.reason)
  return found


@pytest.mark.parametrize('task', sorted(miniworld.KINDS))
def test_every_task_gives_the_same_records_again(data_dir, task):
  source = open_source(entry(task, max_turns=2, seed=4), data_dir)
  assert isinstance(source, record.Source) and source.name == 'miniworld'
  assert len(source) == sum(SIZES['train'][kind] for kind in miniworld.KINDS[task])
  first = records(source)
  again = open_source(entry(task, max_turns=2, seed=4), data_dir)
  assert [
    again[i] if isinstance(first[i], record.Record) else first[i]
    for i in reversed(range(len(first)))
  ] == first[::-1]
  good = [each for each in first if isinstance(each, record.Record)]
  assert len(good) >= len(first) / 2
  assert len({each.id for each in good}) == len(good)
  for each in good:
    assert each.task == task and 1 <= len(each.turns) <= 2 and len(each.truth) == len(each.turns)
    assert len(each.images) == {'text': 0, 'difference': 2}.get(task, 1)
    marks = sum(text.count(record.MARK) for text, _ in each.turns if text)
    assert (marks, each.marks) == ((2, 'inline') if len(each.images) == 2 else (0, 'text'))


def test_some_pairs_are_two_scenes_and_others_differ_in_one_thing(data_dir):
  scenes = {each.images[0] for each in records(open_source(entry('vqa', split='train'), data_dir))}
  pairs = [
    open_source(entry('difference', max_turns=4, seed=seed), data_dir)[index]
    for seed in range(4)
    for index in range(12)
  ]
  changed = [not set(pair.images) <= scenes for pair in pairs]
  assert 12 < sum(changed) < 36
  for pair, is_changed in zip(pairs, changed):
    assert not is_changed or any('before' in truth for truth in pair.truth)


def test_miniworld_serves_every_task_but_dialogs_which_it_has_none_of():
  assert set(miniworld.KINDS) == set(tasks.TASKS) - {'dialog'}
  assert SOURCES['miniworld'] is miniworld.open_source


def test_pictures_and_annotations_are_the_scenes_own(data_dir):
  source = open_source(entry('vqa', split='test'), data_dir)
  for index in (11, 0, 5):
    made = scene.make('objects', 'test', index, seed=2)
    row = source[index]
    assert row.id == made.id
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(row.images[0]))), made.pixels)
    annotation = source.annotation(index)
    assert {key: annotation[key] for key in made.annotation} == json.loads(
      json.dumps(made.annotation)
    )


def test_another_seed_asks_other_questions_about_the_same_pictures(data_dir):
  first, second = (open_source(entry('vqa', seed=seed), data_dir) for seed in (0, 1))
  assert [each.images for each in records(first)] == [each.images for each in records(second)]
  assert [each.turns for each in records(first)] != [each.turns for each in records(second)]


def test_caption_domains_and_the_interleaving_of_kinds(data_dir):
  real, synthetic = (
    open_source(entry('caption', domain=domain), data_dir) for domain in ('real', 'synthetic')
  )
  for index in range(len(real)):
    annotation = real.annotation(index)
    assert real[index].turns[0][1] == annotation['caption'] == annotation['caption_real']
    assert synthetic[index].turns[0][1] == annotation['caption_synthetic']
  half = [real.annotation(index)['kind'] for index in range(len(real) // 2)]
  assert all(abs(half.count(kind) - SIZES['train'][kind] / 2) <= 1 for kind in scene.KINDS)


def test_text_records_are_the_corpus(data_dir):
  source = open_source(entry('text', split='validation'), data_dir)
  assert [source.annotation(index)['text'] for index in range(9)] == corpus.texts(
    'validation', 9, seed=2
  )


def test_splits_share_no_record(data_dir):
  ids = [
    {each.id for each in records(open_source(entry('caption', split=split), data_dir))}
    for split in scene.SPLITS
  ]
  assert sum(map(len, ids)) == len(set.union(*ids))


def test_plain_iteration_ends(data_dir):
  source = open_source(entry('ocr'), data_dir)
  assert len(list(source)) == len(source)
  with pytest.raises(IndexError):
    source[-1]


def test_wrong_names_and_missing_data_are_told(data_dir, tmp_path):
  for wrong, advice in (
    (entry('vga'), "did you mean 'vqa'"),
    (entry('vqa', split='tset'), "did you mean 'test'"),
    (entry('caption', domain='sythetic'), "did you mean 'synthetic'"),
    (ConfigDict({'source': 'miniwrld', 'task': 'vqa'}), "did you mean 'miniworld'"),
  ):
    with pytest.raises(errors.SphinxError, match=advice):
      open_source(wrong, data_dir)
  with pytest.raises(errors.SphinxError, match='correct data_dir, or build it'):
    open_source(entry('vqa'), tmp_path)


def test_a_scene_with_nothing_to_ask_is_a_bad_example(data_dir, monkeypatch):
  source = open_source(entry('relation'), data_dir)
  monkeypatch.setattr(source, '_turns', lambda *_: [])
  with pytest.raises(record.BadExample) as caught:
    source[3]
  assert caught.value.reason == 'no turns' and 'train_objects/000003' in caught.value.message


def test_the_common_instruction_changes_the_questions_alone(data_dir):
  own, shared = (
    open_source({**entry('rec'), 'instructions': name}, data_dir) for name in ('own', 'common')
  )
  for index in range(6):
    first, second = own[index], shared[index]
    assert (first.id, first.truth, first.images) == (second.id, second.truth, second.images)
    assert [answer for _, answer in first.turns] == [answer for _, answer in second.turns]
    assert all(question.startswith('Answer about the image. ') for question, _ in second.turns)
