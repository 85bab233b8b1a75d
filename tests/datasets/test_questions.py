"""What all question families share: no question is lost, malformed ones are counted."""

import json

import numpy as np
import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core import errors
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from tests.datasets import image_files
from tests.datasets.question_trees import ALONE, TREES, YES, Asked

ODD = 'Ist das «grün»? 緑 👁 {} {0}\u2028'


def opened(name, data_dir, **entry):
  return sources.open_source(dict(source=name, root='tree', max_turns=2) | entry, data_dir)


def tried(source):
  """(records, reasons of the bad ones) of a source."""
  records, reasons = [], []
  for index in range(len(source)):
    try:
      records.append(source[index])
    except BadExample as error:
      reasons.append(error.reason)
      assert error.message
  return records, sorted(reasons)


def written(name, tmp_path, asked, seen=True):
  place = TREES[name](tmp_path / 'tree', asked)
  for image in {q.image for q in asked} if seen else ():
    image_files.write(place(image))
  return place


@pytest.mark.parametrize('name', TREES)
def test_every_question_is_in_one_record_with_its_image_and_answer(tmp_path, name):
  asked = [
    Asked(i, 1 + (0 if i % 2 else i), f'{ODD}{i}', 'no' if i == 3 else 'yes') for i in range(8)
  ]
  if name in ALONE:
    asked = [q._replace(image=q.number) for q in asked]
  written(name, tmp_path, asked)
  records, reasons = tried(opened(name, tmp_path))
  assert not reasons and len({record.id for record in records}) == len(records)
  assert all(
    record.images == (image_files.encoded(),) and len(record.turns) <= 2 for record in records
  )
  turns = [turn for record in records for turn in record.turns]
  assert len(turns) == len(asked)
  for q in asked:
    (answer,) = [answer for text, answer in turns if q.text.strip() in text]
    assert (answer == YES.get(name, 'yes')) == (q.answer == 'yes')
  if name not in ALONE:
    assert sorted(len(record.turns) for record in records) == [
      1,
      1,
      1,
      1,
      2,
      2,
    ]  # Four of image 1, no two of the others.


@pytest.mark.parametrize('name', TREES)
def test_questions_without_an_answer_are_counted_and_take_no_others_with_them(tmp_path, name):
  other = int(name in ALONE)
  asked = [
    Asked(1, 1, 'Is it?'),
    Asked(2, 1 + other, 'Was it?', None),
    Asked(3, 1 + 2 * other, 'Will it be?'),
  ]
  written(name, tmp_path, asked)
  records, reasons = tried(opened(name, tmp_path))
  assert reasons == ['empty answer'] and sum(len(record.turns) for record in records) == 2


@pytest.mark.parametrize('name', TREES)
def test_gray_cmyk_truncated_empty_and_missing_images(tmp_path, name):
  place = written(name, tmp_path, [Asked(i, i, f'Is it {i}?') for i in range(1, 7)], seen=False)
  source = opened(name, tmp_path)  # There is no image yet: opening does not look.
  assert tried(source) == ([], ['missing image'] * 6)
  damaged = {
    1: image_files.encoded(mode='L'),
    2: image_files.encoded(mode='CMYK'),
    3: image_files.truncated(),
    4: b'',
    5: b'no picture',
  }
  for image, data in damaged.items():
    image_files.write(place(image), data)
  records, reasons = tried(opened(name, tmp_path))
  assert reasons == ['empty image', 'missing image', 'unreadable image']
  shapes = []
  for record in records:
    if record.images[0] == damaged[3]:
      with pytest.raises(BadExample, match='of .* bytes: image file is truncated'):
        images.decode(record.images[0])
    else:
      shapes.append(images.decode(record.images[0]).shape)
  assert len(records) == 3 and shapes == [(30, 40, 3)] * 2


@pytest.mark.parametrize('name', TREES)
def test_files_that_are_missing_empty_or_of_another_kind_stop_the_run_with_their_name(
  tmp_path, name
):
  written(name, tmp_path, [Asked(1, 1, 'Is it?')], seen=False)
  files = sorted(
    path for path in (tmp_path / 'tree').rglob('*.json*') if name not in ('iconqa', 'ai2d')
  )
  for path in files:
    good = path.read_bytes()
    for data in (b'', b'{"a": ', b'3', b'"\xff"') if path.suffix == '.json' else ():
      path.write_bytes(data)
      with pytest.raises(errors.SphinxError, match=f"source '{name}'.*{path.name}"):
        opened(name, tmp_path)
    path.unlink()
    with pytest.raises(errors.SphinxError, match=f"source '{name}'.*{path.name}"):
      opened(name, tmp_path)
    path.write_bytes(good)
  (tmp_path / 'empty').mkdir()
  with pytest.raises(errors.SphinxError, match=f"source '{name}'.*none of"):
    opened(name, tmp_path, root='empty')


def _changed(value, new):
  """Every copy of a JSON value in which one part is another one."""
  yield new
  for key in (
    value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
  ):
    for part in _changed(value[key], new):
      copy = value.copy()
      copy[key] = part
      yield copy
    without = value.copy()
    del without[key]
    yield without


@pytest.mark.parametrize('name', TREES)
def test_wrong_types_anywhere_in_the_files_are_bad_examples_or_said_when_opened(tmp_path, name):
  asked = [Asked(1, 1, 'Is it?'), Asked(2, 2, 'Was it?', 'no')]
  place = written(name, tmp_path, asked[:1])
  image_files.write(place(2))
  for path in sorted((tmp_path / 'tree').rglob('*.json*')):
    good = path.read_text()
    for new in (None, True, -7, 1e999, '', '\ud800\0', [], [None], {}, {'answer': []}):
      for value in _changed(json.loads(good), new):
        path.write_text(json.dumps(value))
        try:
          tried(opened(name, tmp_path))
        except errors.SphinxError as error:
          assert name in str(error)
    path.write_text(good)
  assert len(tried(opened(name, tmp_path))[0]) == 1


LISTS = {
  'vqav2': 'v2_OpenEnded_mscoco_train2014_questions.json',
  'okvqa': 'OpenEnded_mscoco_train2014_questions.json',
  'aokvqa': 'aokvqa_v1p0_train.json',
  'textvqa': 'TextVQA_0.5.1_train.json',
  'vizwiz': 'Annotations/train.json',
  'docvqa': 'train/train_v1.0.json',
}


@pytest.mark.parametrize('name', LISTS)
def test_of_duplicate_ids_the_same_question_is_dropped_and_another_is_kept(tmp_path, name):
  written(name, tmp_path, [Asked(1, 1, 'Is it?'), Asked(2, 2, 'Was it?')])
  path = tmp_path / 'tree' / LISTS[name]
  value = json.loads(path.read_text())
  records = (
    value
    if isinstance(value, list)
    else next(part for part in value.values() if isinstance(part, list))
  )
  records += [
    records[0],
    {**records[0], 'question': 'Will it be?'},
    records[1],
    'no record',
    {},
    None,
  ]
  path.write_text(json.dumps(value))
  records, reasons = tried(opened(name, tmp_path, max_turns=1))
  assert reasons == ['malformed record'] * 3
  assert sorted(text.split('?')[0] for record in records for text, _ in record.turns) == [
    'Is it',
    'Was it',
    'Will it be',
  ]
  assert (
    len({record.id for record in records}) == 3
    and sum(record.id.endswith('#2') for record in records) == 1
  )


# The other two are one download with their images.
@pytest.mark.parametrize('name', [name for name in TREES if name not in ('iconqa', 'ai2d')])
def test_images_may_lie_elsewhere(tmp_path, name):
  place = written(name, tmp_path, [Asked(1, 1, 'Is it?')], seen=False)
  path, folders = place(1), {'vqav2': 1, 'okvqa': 1, 'aokvqa': 1, 'scienceqa': 2}
  rest = path.relative_to(path.parents[folders.get(name, 0)])
  image_files.write(tmp_path / 'elsewhere' / rest)
  assert len(opened(name, tmp_path, images='../elsewhere')[0].turns) == 1


def test_the_trained_answer_is_the_most_common_and_the_first_of_equals(tmp_path):
  written('textvqa', tmp_path, [Asked(1, 1, 'Is it?')])
  path = tmp_path / 'tree/TextVQA_0.5.1_train.json'
  value = json.loads(path.read_text())
  for answers, trained in (
    (['b', 'a', 'a', 'b', 'c'], 'b'),
    (['', ' ', '', 'a'], 'a'),
    ([7, 'a', 7.0, 7], '7'),
  ):
    value['data'][0]['answers'] = answers
    path.write_text(json.dumps(value))
    record = opened('textvqa', tmp_path)[0]
    assert record.turns[0][1] == trained and len(record.truth[0]['answers']) == len(answers)


def test_choices_are_letters(tmp_path):
  written('aokvqa', tmp_path, [Asked(1, 1, 'Is it?', 'no')])
  text, answer = opened('aokvqa', tmp_path, form='choice')[0].turns[0]
  assert 'A. no\nB. yes\nC. cat\nD. dog' in text and answer == 'A'
  assert opened('aokvqa', tmp_path, form='direct')[0].truth[0]['answers'] == ['no'] * 9 + ['cat']
  with pytest.raises(errors.SphinxError, match="did you mean 'choice'"):
    opened('aokvqa', tmp_path, form='choices')
  path = tmp_path / 'tree/aokvqa_v1p0_train.json'
  value = json.loads(path.read_text())
  for index in (4, -1, 'x'):
    value[0]['correct_choice_idx'] = index
    path.write_text(json.dumps(value))
    assert tried(opened('aokvqa', tmp_path, form='choice')) == ([], ['malformed record'])


def test_the_same_item_is_read_each_time(tmp_path):
  written('vqav2', tmp_path, [Asked(i, i % 3, f'Is it {i}?') for i in range(9)])
  order = np.random.default_rng(0).permutation(6)
  first, again = opened('vqav2', tmp_path), opened('vqav2', tmp_path)
  assert [first[i] for i in order] == [again[int(i)] for i in order] == [first[i] for i in order]
