"""miniworld: scenes are functions of their number, annotations agree with pixels, builds resume."""

import json
import re
import zlib

import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.core.coordinates import KEYPOINTS
from sphinx_jax.miniworld import (
  builder,
  captions,
  corpus,
  figures,
  objects,
  pages,
  places,
  scene,
  words,
  workers,
)
from sphinx_jax.miniworld.draw import COLORS, Canvas

FIELD = {'objects': 'objects', 'words': 'words', 'page': 'blocks', 'figure': 'people'}
SIZES = {
  split: {'objects': 6, 'words': 4, 'page': 4, 'figure': 4, 'text': 8} for split in scene.SPLITS
}


def scenes(kind, count=40, split='train', **kwargs):
  return [scene.make(kind, split, index, **kwargs) for index in range(count)]


@pytest.mark.parametrize('kind', scene.KINDS)
def test_a_scene_is_a_function_of_its_number(kind):
  first, again = scene.make(kind, 'train', 7, seed=3), scene.make(kind, 'train', 7, seed=3)
  assert first.annotation == again.annotation
  assert first.png() == again.png()
  others = [
    scene.make(kind, 'train', 8, seed=3),
    scene.make(kind, 'train', 7, seed=4),
    scene.make(kind, 'test', 7, seed=3),
  ]
  assert all(not np.array_equal(first.pixels, other.pixels) for other in others)
  assert all(first.annotation != other.annotation for other in others)


def test_unknown_names_are_answered_with_the_choices():
  with pytest.raises(errors.SphinxError, match="did you mean 'objects'"):
    scene.make('object', 'train', 0)
  with pytest.raises(errors.SphinxError, match='validation'):
    scene.make('page', 'valid', 0)


@pytest.mark.parametrize('kind', scene.KINDS)
@pytest.mark.parametrize('size', (64, 96))
def test_annotations_hold_every_list_and_boxes_inside_the_image(kind, size):
  for made in scenes(kind, 12, size=size):
    assert made.pixels.shape == (size, size, 3) and made.pixels.dtype == np.uint8
    assert set(made.annotation) == {
      'kind',
      'objects',
      'words',
      'blocks',
      'people',
      'caption_real',
      'caption_synthetic',
    }
    assert json.loads(json.dumps(made.annotation)) == made.annotation
    filled = [field for field in FIELD.values() if made.annotation[field]]
    assert filled == [FIELD[kind]]
    for thing in made.annotation[FIELD[kind]]:
      x1, y1, x2, y2 = thing['box']
      assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1


def _drawn_box(canvas, size):
  """The box of all that differs from a white ground, in [0, 1], to whole pixels."""
  ground = np.full((size, size, 3), 255, np.float32)
  rows, columns = np.nonzero((canvas.finish(ground) != 255).any(-1))
  return np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]) / size


@pytest.mark.parametrize('name', objects.NAMES)
def test_boxes_of_objects_are_tight_around_the_drawn_pixels(name):
  for k, color in enumerate(COLORS.values()):
    canvas = Canvas(64)
    box = objects.paint(canvas, name, color, (0.4 + 0.03 * k, 0.55), 0.31, 0.27, turn=0.02 * k)
    assert np.abs(np.array(box) - _drawn_box(canvas, 64)).max() <= 1 / 64
    assert abs((box[0] + box[2]) / 2 - (0.4 + 0.03 * k)) < 0.02


@pytest.mark.parametrize('label', pages.LABELS)
def test_boxes_of_blocks_are_tight_around_the_drawn_pixels(label):
  canvas = Canvas(64)
  box = pages.paint(canvas, label, (0.2, 0.3, 0.8, 0.55), np.random.default_rng(0))
  assert np.abs(np.array(box) - _drawn_box(canvas, 64)).max() <= 1 / 64
  assert np.abs(np.array(box) - (0.2, 0.3, 0.8, 0.55)).max() < 0.03


def test_boxes_of_words_are_tight_and_every_letter_has_its_own_look():
  assert len(words.LEXICON) == len(set(words.LEXICON)) and set(map(len, words.LEXICON)) == {3, 4}
  looks = set()
  for letter in sorted(set(''.join(words.LEXICON))):
    canvas = Canvas(64)
    box = words.write(canvas, letter, (0.25, 0.25), COLORS['blue'])
    assert np.abs(np.array(box) - _drawn_box(canvas, 64)).max() <= 1 / 64
    looks.add(canvas.finish(np.zeros((64, 64, 3), np.float32)).tobytes())
  assert len(looks) == len(set(''.join(words.LEXICON)))


def test_objects_do_not_touch_and_are_told_apart_by_color_and_name():
  counts, seen = set(), set()
  for made in scenes('objects', 200):
    things = made.annotation['objects']
    counts.add(len(things))
    assert len({(thing['color'], thing['name']) for thing in things}) == len(things)
    for k, thing in enumerate(things):
      seen.add((thing['color'], thing['name']))
      longer = max(thing['box'][2] - thing['box'][0], thing['box'][3] - thing['box'][1])
      assert (longer > 0.38) == (thing['size'] == 'big')
      for other in things[:k]:
        a, b = thing['box'], other['box']
        assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
  assert counts == {1, 2, 3}
  assert len(seen) == len(COLORS) * len(objects.NAMES)


def test_things_lie_in_whole_cells_of_a_grid_of_four():
  for kind in ('objects', 'words'):
    for made in scenes(kind, 60):
      for thing in made.annotation[FIELD[kind]]:
        box = np.array(thing['box'])
        first, last = np.floor(box[:2] * 4), np.ceil(box[2:] * 4)
        assert np.array_equal(last - first, np.ceil((box[2:] - box[:2]) * 4)), (made.id, thing)


def test_smaller_objects_and_words_have_the_same_names_and_lie_inside_the_image():
  for kind, name in (('objects', 'name'), ('words', 'text')):
    usual, half = (
      [thing for made in scenes(kind, 30, scale=scale) for thing in made.annotation[FIELD[kind]]]
      for scale in (1.0, 0.5)
    )
    edges = [np.mean([np.ptp(np.reshape(t['box'], (2, 2)), 0) for t in ts]) for ts in (usual, half)]
    assert edges[1] == pytest.approx(edges[0] / 2, rel=0.15)
    assert len({thing[name] for thing in half}) > 5
    assert all(0 <= min(thing['box']) and max(thing['box']) <= 1 for thing in half)
  page = scene.make('page', 'train', 3, scale=0.5)
  assert np.array_equal(page.pixels, scene.make('page', 'train', 3).pixels)


def test_the_color_of_an_object_is_in_its_pixels():
  for made in scenes('objects', 30):
    for thing in made.annotation['objects']:
      x1, y1, x2, y2 = (round(edge * 64) for edge in thing['box'])
      patch = made.pixels[y1:y2, x1:x2].reshape(-1, 3).astype(int)
      near = {name: (np.abs(patch - color).max(-1) < 40).sum() for name, color in COLORS.items()}
      assert max(near, key=near.get) == thing['color'], (made.id, thing, near)


def test_words_are_written_at_full_contrast_inside_their_boxes():
  for made in scenes('words', 30):
    ground = np.median(made.pixels.reshape(-1, 3), axis=0)
    contrast = np.abs(made.pixels - ground).max(-1)
    inside = np.zeros((64, 64), bool)
    for word in made.annotation['words']:
      assert word['text'] in words.LEXICON and word['color'] in COLORS
      x1, y1, x2, y2 = word['box']
      inside[int(y1 * 64) : int(np.ceil(y2 * 64)), int(x1 * 64) : int(np.ceil(x2 * 64))] = True
    assert contrast[~inside].max() < 30
    assert np.quantile(contrast[inside], 0.9) > 60


def test_grounds_lie_near_the_mean_color_of_the_encoders():
  for kind in ('objects', 'words', 'figure'):
    ground = np.mean(
      [np.median(made.pixels.reshape(-1, 3), axis=0) for made in scenes(kind, 30)], axis=0
    )
    assert np.abs(ground - (122, 116, 104)).max() < 25


def test_pages_are_in_reading_order_with_header_and_footer_at_the_ends():
  seen = set()
  for made in scenes('page', 150):
    blocks = made.annotation['blocks']
    labels = [block['label'] for block in blocks]
    seen.update(labels)
    assert 3 <= len(blocks) <= 6
    assert all(
      above['box'][3] < below['box'][1] for above, below in zip(blocks, blocks[1:], strict=False)
    )
    for label, place, low, high in (('Page-header', 0, 0, 0.2), ('Page-footer', -1, 0.75, 1)):
      assert label not in labels[1:-1] and labels.count(label) <= 1
      if label in labels:
        assert labels[place] == label and low <= places.center(blocks[place]['box'])[1] <= high
  assert seen == set(pages.LABELS)


def test_blocks_of_a_page_lie_in_its_rows_and_tall_classes_take_two():
  for made in scenes('page', 40):
    taken = []
    for block in made.annotation['blocks']:
      first, last = np.floor(block['box'][1] * pages.ROWS), np.ceil(block['box'][3] * pages.ROWS)
      assert last - first == (
        2 if block['label'] in ('Text', 'List-item', 'Table', 'Picture') else 1
      ), (made.id, block)
      taken += range(int(first), int(last))
    assert len(taken) == len(set(taken))


def test_keypoints_lie_in_the_box_and_left_is_on_the_images_right():
  actions = set()
  for made in scenes('figure', 80):
    (person,) = made.annotation['people']
    actions.add(person['action'])
    assert (person['side'] != '') == (person['action'] in figures.SIDED)
    x1, y1, x2, y2 = person['box']
    assert 0.5 <= y2 - y1 <= 0.9
    points = {}
    for name, (x, y, visible) in zip(KEYPOINTS, person['keypoints'], strict=True):
      assert x1 <= x <= x2 and y1 <= y <= y2 and visible == 2
      points[name] = (x, y)
    assert points['left shoulder'][0] > points['right shoulder'][0]
    if person['action'] == 'waving':
      other = {'left': 'right', 'right': 'left'}[person['side']]
      assert (
        points[f'{person["side"]} wrist'][1] < points['nose'][1] + 0.1 < points[f'{other} wrist'][1]
      )
    elbow = made.pixels[tuple(int(64 * c) for c in points['left elbow'][::-1])].astype(int)
    assert elbow[0] > elbow[2] + 60, 'the left arm is red'
  assert actions == set(figures.ACTIONS)


def test_synthetic_captions_name_everything_with_its_place():
  for made in scenes('objects', 40):
    caption = made.annotation['caption_synthetic']
    for thing in made.annotation['objects']:
      assert (
        f'{thing["size"]} {thing["color"]} {thing["name"]} {places.phrase(thing["box"])}' in caption
      )
    assert len(re.findall('|'.join(objects.NAMES), caption)) == len(made.annotation['objects'])
  for made in scenes('words', 20):
    for word in made.annotation['words']:
      assert (
        f'the word {word["text"]} in {word["color"]} {places.phrase(word["box"])}'
        in made.annotation['caption_synthetic']
      )
  for made in scenes('page', 20):
    for block in made.annotation['blocks']:
      assert (
        f'{captions.label_words(block["label"])} {places.row(block["box"])}'
        in made.annotation['caption_synthetic']
      )
  for made in scenes('figure', 20):
    person = made.annotation['people'][0]
    assert places.phrase(person['box']) in made.annotation['caption_synthetic']
    assert person['side'] in made.annotation['caption_synthetic']


@pytest.mark.parametrize('kind', scene.KINDS)
def test_captions_are_short_and_the_domains_differ(kind):
  made = scenes(kind, 120)
  real = [item.annotation['caption_real'] for item in made]
  synthetic = [item.annotation['caption_synthetic'] for item in made]
  assert max(len(text.split()) for text in real + synthetic) <= 40
  assert all(text == text.lower() for text in real)
  assert not any(text.endswith('.') and not text.endswith('..') for text in real)
  assert all(text.endswith('.') for text in synthetic)
  assert len(set(real)) > 110


def test_real_captions_are_mostly_but_not_always_right():
  wrong, paired, placed = 0, 0, 0
  for made in scenes('objects', 300):
    text = made.annotation['caption_real']
    truth = {(thing['color'], thing['name']) for thing in made.annotation['objects']}
    pairs = re.findall(f'({"|".join(COLORS)}) ({"|".join(objects.NAMES)})', text)
    paired += bool(pairs)
    wrong += any(pair not in truth for pair in pairs)
    placed += bool(
      re.search('upper|lower|left|right|top|bottom|middle|above|below|focus|crop', text)
    )
  assert 0.02 < wrong / paired < 0.2
  assert placed / 300 > 0.6


def test_places_are_named_by_their_center():
  assert places.phrase((0.0, 0.0, 0.2, 0.2)) == 'in the upper left'
  assert places.phrase((0.4, 0.0, 0.6, 0.2)) == 'at the top'
  assert places.phrase((0.8, 0.4, 1.0, 0.6)) == 'on the right'
  assert places.phrase((0.4, 0.4, 0.6, 0.6)) == 'in the middle'
  assert places.fine((0.1, 0.6, 0.12, 0.7)) == 'far left just below the middle'
  assert places.relation((0.1, 0.4, 0.2, 0.5), (0.7, 0.5, 0.8, 0.6)) == 'left of'
  assert places.relation((0.1, 0.8, 0.2, 0.9), (0.2, 0.1, 0.3, 0.2)) == 'below'


def test_corpus_splits_share_no_text_and_more_texts_begin_with_the_fewer():
  split = {
    name: corpus.texts(name, count, seed=1)
    for name, count in (('train', 1500), ('validation', 60), ('test', 60))
  }
  for name, lines in split.items():
    assert len(set(lines)) == len(lines)
    assert lines[:40] == corpus.texts(name, 40, seed=1)
    assert all(3 <= len(line.split()) <= 40 for line in lines)
  assert not set(split['train']) & set(split['validation'] + split['test'])
  assert not set(split['validation']) & set(split['test'])
  assert corpus.texts('test', 40, seed=2) != split['test'][:40]


def test_corpus_arithmetic_is_true():
  numbers = ('zero',) + corpus._NUMBERS
  checked = 0
  for line in corpus.texts('train', 2000):
    made = re.fullmatch(r'(\w+) \w+ and (\w+) more make (\w+)\.', line)
    if made:
      first, second, total = (numbers.index(word) for word in made.groups())
      assert first + second == total
      checked += 1
  assert checked > 5


def test_the_number_of_drawing_processes_changes_nothing(monkeypatch):
  monkeypatch.setattr(workers, '_MIN_SCENES', 1)
  alone = list(workers.draw_rows('objects', 'train', 70, 5, 64))
  with workers.open_pool(2, 70) as executor:
    assert executor is not None
    assert list(workers.draw_rows('objects', 'train', 70, 5, 64, executor)) == alone
  with workers.open_pool(1, 70) as executor:
    assert executor is None


def _fingerprint(folder):
  return {path.name: zlib.crc32(path.read_bytes()) for path in folder.rglob('*.array_record*')}


def test_a_build_is_recognized_resumed_and_never_mistaken(tmp_path, monkeypatch):
  first, second = tmp_path / 'first', tmp_path / 'second'
  builder.build(first, SIZES, seed=5)
  with monkeypatch.context() as patch:
    patch.setattr(
      builder.Miniworld, 'download_and_prepare', None
    )  # a finished build needs no building
    builder.build(first, SIZES, seed=5)
    for other in (dict(seed=6), dict(seed=5, image_size=96), dict(seed=5, scale=0.5)):
      with pytest.raises(errors.SphinxError, match='name another data_dir'):
        builder.build(first, SIZES, **other)

  class Killed(BaseException):
    pass

  def die(*_):
    raise Killed

  with monkeypatch.context() as patch:
    patch.setattr(corpus, 'texts', die)  # scenes get finished, text does not
    with pytest.raises(Killed):
      builder.build(second, SIZES, seed=5)
  leftover = (
    second / 'miniworld' / 'text' / f'incomplete.ABC_{builder.Miniworld.VERSION}'
  )  # what kill -9 leaves
  leftover.mkdir(parents=True)
  (leftover / 'half').write_text('x')
  builder.build(second, SIZES, seed=5)
  assert not leftover.exists()
  assert _fingerprint(first) == _fingerprint(second) and len(_fingerprint(first)) == 15


def test_impossible_numbers_are_refused_before_anything_is_drawn(tmp_path):
  with pytest.raises(errors.SphinxError, match="sizes\\['test'\\]\\['page'\\]: got 0"):
    builder.build(tmp_path, {'test': {'page': 0}})
  with pytest.raises(errors.SphinxError, match="did you mean 'figure'"):
    builder.build(tmp_path, {'test': {'figures': 3}})
  with pytest.raises(errors.SphinxError, match="did you mean 'validation'"):
    builder.build(tmp_path, {'validatoin': {'figure': 3}})
  with pytest.raises(errors.SphinxError, match='image_size'):
    builder.build(tmp_path, SIZES, image_size=8)
  with pytest.raises(errors.SphinxError, match='seed'):
    builder.build(tmp_path, SIZES, seed=-1)
  assert not list(tmp_path.iterdir())
