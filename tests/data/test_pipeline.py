"""Invariances of the pipeline (position, hosts, epochs), and its handling of bad examples."""

import dataclasses
import io
import json
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core import batch as contract
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import geometry, images, mixture, tokenizer as tokenizers
from sphinx_jax.data.dialog import Template
from sphinx_jax.data.pipeline import Pipeline, PipelineConfig
from sphinx_jax.data.record import BadExample, Record, Source
from sphinx_jax.datasets import files, jsonl
from sphinx_jax.mix.tasks import Mixture

GOLDEN = Path(__file__).parents[1] / 'golden'
TOKENIZER = tokenizers.load(GOLDEN / 'tokenizer.model')
VISUAL, SIZE = 5, 8
NO_SYSTEM = Template('')
BATCH = {'batch_size': 4, 'seq_len': 64, 'slots': 2, 'window': 16}
ROW_FIELDS = tuple(contract.FIELDS)


def _encode(pixels):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, 'PNG')
  return file.getvalue()


def _png(value):
  return _encode(np.full((SIZE, SIZE, 3), value, np.uint8))


class Fake(Source):
  """Answers name their example. `spoil(index)` may raise, or return another image or answer."""

  def __init__(self, name, size, image=True, spoil=lambda index: {}):
    self.name, self._size, self._image, self._spoil = name, size, image, spoil

  def __len__(self):
    return self._size

  def __getitem__(self, index):
    content = {
      'images': (_png(index % 256),) if self._image else (),
      'answer': f'{self.name}{index}' + ' so' * (index % 7),
    }
    content |= self._spoil(index)
    turns = (('Q', content['answer']),)
    return Record(f'{self.name}/{index}', self.name, content['images'], turns, ({},))


def _pipeline(
  sources=None,
  weights=None,
  batch=BATCH,
  template=NO_SYSTEM,
  local_rows=None,
  sampling=None,
  image_size=SIZE,
  **rules,
):
  sources = sources or [Fake('a', 10), Fake('b', 17), Fake('c', 5, image=False)]
  weights = weights or [0.5, 0.3, 0.2]
  names = [source.name for source in sources]
  return Pipeline(
    dict(zip(names, sources)),
    dict(zip(names, weights)),
    TOKENIZER,
    template,
    PipelineConfig(**batch, visual_tokens=VISUAL, image_size=image_size, **rules),
    local_rows=local_rows,
    sampling=sampling,
  )


def _take(pipeline, count, position=0, **more):
  with pipeline.batches(position, **more) as batches:
    return [next(batches) for _ in range(count)]


def _equal(batch, other):
  return all(np.array_equal(batch[name], other[name]) for name in ROW_FIELDS)


def _answers(batches):
  """Counter of the first words of all answers."""
  answers = Counter()
  for batch, _ in batches:
    for b in range(len(batch['tokens'])):
      for segment in range(1, batch['segments'][b].max() + 1):
        labels = (batch['segments'][b] == segment) & (batch['loss_weight'][b] > 0)
        text = TOKENIZER.decode(batch['targets'][b, labels])
        answers[text.removesuffix('\n###').split(' ')[0]] += 1
  return answers


def test_batches_keep_the_contract():
  for batch, position in _take(_pipeline(loss_weighting='sqrt'), 6):
    contract.check(batch, VISUAL)
    assert batch['tokens'].shape == (4, 64) and batch['images'].shape == (4, 2, SIZE, SIZE, 3)
    assert type(position) is int


def test_the_image_of_a_segment_is_its_own():
  for batch, _ in _take(_pipeline([Fake('a', 10)], [1]), 3):
    for b in range(4):
      for segment in range(1, batch['segments'][b].max() + 1):
        here = batch['segments'][b] == segment
        answer = TOKENIZER.decode(batch['targets'][b, here & (batch['loss_weight'][b] > 0)])
        index = batch['visual_index'][b, here & (batch['visual_index'][b] >= 0)]
        assert index.tolist() == list(range(index[0], index[0] + VISUAL)) and index[0] % VISUAL == 0
        assert (batch['images'][b, index[0] // VISUAL] == int(answer[1])).all()


def test_resuming_at_any_position_gives_the_same_batches():
  whole = _take(_pipeline(), 12)
  for i in (0, 1, 4, 7, 10):
    again = _take(_pipeline(), 2, position=whole[i][1])
    for (batch, position), (other, other_position) in zip(again, whole[i + 1 :]):
      assert position == other_position and _equal(batch, other)


def test_new_weights_keep_the_rows_that_are_packed_and_are_the_same_on_all_hosts():
  def restarted(position, stages, **more):
    pipeline = _pipeline(sampling={'by': 'learned'}, **more)
    pipeline.set_stages(stages)
    return _take(pipeline, 8, position)

  # Rows of the last window before a block: some are used, some are not.
  near = next(position for _, position in _take(_pipeline(), 40, 1000) if position > 1010)
  assert near % 16 and near < 1024
  stages = mixture.add_stage((), near, 16, {'a': 0.0, 'b': 1.0, 'c': 0.0})
  assert [begin for begin, _ in stages] == [1024]
  whole, old = restarted(near, stages), _take(_pipeline(), 8, near)
  assert _equal(whole[0][0], old[0][0]) and not _equal(whole[-1][0], old[-1][0])
  assert set(np.unique(whole[-1][0]['task'][whole[-1][0]['segments'] > 0])) == {1}
  parts = [restarted(near, stages, local_rows=rows) for rows in ((0, 2), (1, 3))]
  for i, (batch, position) in enumerate(whole):
    for part, rows in zip(parts, ((0, 2), (1, 3))):
      assert part[i][1] == position and np.array_equal(
        part[i][0]['tokens'], batch['tokens'][[*rows]]
      )


def test_seed_changes_the_order():
  assert not _equal(_take(_pipeline(seed=1), 1)[0][0], _take(_pipeline(), 1)[0][0])


@pytest.mark.parametrize('shares', [[(0, 1), (2, 3)], [(0, 2), (1, 3)], [(0,), (1,), (2,), (3,)]])
@pytest.mark.parametrize('examples', [None, 40])
def test_hosts_together_have_the_batches_of_one(shares, examples):
  whole = _take(_pipeline(), 5, examples=examples)
  parts = [_take(_pipeline(local_rows=share), 5, examples=examples) for share in shares]
  order = np.argsort([row for share in shares for row in share])
  for i, (batch, position) in enumerate(whole):
    assert {part[i][1] for part in parts} == {position}
    joined = {
      name: np.concatenate([part[i][0][name] for part in parts])[order] for name in ROW_FIELDS
    }
    assert _equal(joined, batch)


@pytest.mark.parametrize('shares', [[(0, 1, 2, 3)], [(0, 1), (2, 3)], [(0,), (1,), (2,), (3,)]])
def test_each_host_decodes_the_images_of_its_own_rows_alone(shares, monkeypatch):
  decoded, open_rgb = [], images.open_rgb
  monkeypatch.setattr(
    images, 'open_rgb', lambda source, *rest: (decoded.append(source), open_rgb(source, *rest))[1]
  )
  counts = []
  for share in shares:
    decoded.clear()
    batches = list(_pipeline([Fake('a', 40)], [1], local_rows=share).batches(examples=40))
    used = sum(int(batch['segments'].max(axis=1).sum()) for batch, _ in batches)
    counts.append(len(decoded))
    assert counts[-1] == used  # One image each.
  assert sum(counts) == 40


@pytest.mark.parametrize('threads', [1, 3])
def test_threads_change_nothing(threads):
  for (batch, _), (other, _) in zip(_take(_pipeline(threads=threads), 6), _take(_pipeline(), 6)):
    assert _equal(batch, other)


@pytest.mark.parametrize('examples', [1, 16, 30])
def test_a_finite_pass_gives_each_of_its_examples_once(examples):
  batches = list(_pipeline([Fake('a', examples)], [1]).batches(examples=examples))
  assert _answers(batches) == {f'a{i}': 1 for i in range(examples)}
  assert all(batch['tokens'].shape == (4, 64) for batch, _ in batches)


def test_epochs_follow_each_other():
  batches = list(_pipeline([Fake('a', 10)], [1]).batches(examples=30))
  assert _answers(batches) == {f'a{i}': 3 for i in range(10)}


def test_bad_examples_are_counted_logged_and_skipped(caplog):
  def spoil(index):
    if index == 2:
      raise BadExample('box outside', 'box 7 is outside')
    return {3: {'answer': ' '}, 4: {'images': (b'torn',)}, 5: {'answer': 'long ' * 99}}.get(
      index, {}
    )

  pipeline = _pipeline([Fake('a', 16, spoil=spoil)], [1])
  batches = list(pipeline.batches(examples=16))
  assert pipeline.skipped == {
    ('a', reason): 1 for reason in ('box outside', 'empty answer', 'unreadable image', 'too long')
  }
  assert _answers(batches) == {f'a{i}': 1 for i in range(16) if i not in (2, 3, 4, 5)}
  for text in ('skipped a/3: an answer is empty', 'box 7 is outside', 'skipped a/4', 'skipped a/5'):
    assert text in caplog.text


def test_a_policy_of_the_source_cuts_long_texts():
  source = Fake('a', 4, spoil=lambda index: {'answer': 'long ' * 99})
  source.too_long = 'cut_text'
  ((batch, _),) = _take(_pipeline([source], [1]), 1)
  assert (batch['segments'] == 1).all() and batch['loss_weight'][0, -2] == 1
  assert (batch['visual_index'] >= 0).sum() == 4 * VISUAL


@pytest.mark.parametrize('name', ['single', 'two_turn'])
def test_cut_text_equals_the_official_truncation(name):
  golden = json.loads((GOLDEN / 'conversation/prompts_tokenizer.json').read_text())[
    'truncation_max_words_90'
  ][name]
  (item,) = [
    item
    for item in json.loads((GOLDEN / 'conversation/inputs.json').read_text())
    if item['id'] == name
  ]
  texts = [turn['value'] for turn in item['conversations']]
  turns = tuple(zip(texts[::2], texts[1::2]))
  source = [Record(name, 'chat', (), turns, ({},) * len(turns))]
  source = type('Dialogs', (list, Source), {'name': 'chat', 'too_long': 'cut_text'})(source)
  batch = BATCH | {'batch_size': 1, 'seq_len': 90}
  pipeline = _pipeline([source], [1], batch, Template())
  ((batch, _),) = list(pipeline.batches(examples=1))
  assert batch['tokens'][0].tolist() == golden['input_ids']
  labels = np.where(batch['loss_weight'][0] > 0, batch['targets'][0], 0)
  assert [0, *labels[:-1]] == golden['labels']


def test_images_with_transparency_or_an_orientation_are_counted():
  exif, files = Image.Exif(), [io.BytesIO(), io.BytesIO()]
  exif[0x0112] = 6
  Image.new('RGBA', (SIZE, SIZE), (9, 9, 9, 0)).save(files[0], 'PNG')
  Image.new('RGB', (SIZE, SIZE)).save(files[1], 'PNG', exif=exif)
  clear, turned = (file.getvalue() for file in files)
  spoil = lambda index: (
    {'images': (clear,)} if index < 3 else {'images': (turned,)} if index < 5 else {}
  )
  for alpha, where, shade in (('drop', 'in their hidden colors', 9), ('white', 'on white', 255)):
    pipeline = _pipeline([Fake('a', 8, spoil=spoil)], [1], alpha=alpha)
    pixels = np.concatenate([batch['images'] for batch, _ in pipeline.batches(examples=8)])
    assert (pixels == shade).all((2, 3, 4)).sum() >= 3
    assert sorted(pipeline.summary(0).splitlines()[-2:]) == [
      'used 2 images of a with an EXIF orientation, as stored',
      f"used 3 images of a with transparent pixels, {where} (image.alpha='{alpha}')",
    ]


def test_an_example_may_be_shorter_than_a_row():
  """Rows of several images are longer than the sequences that the model was trained on."""
  source = Fake('a', 4, spoil=lambda index: {'answer': 'long ' * 99} if index == 1 else {})
  wide = BATCH | {'seq_len': 2000}
  pipeline = _pipeline([source], [1], wide, max_length=VISUAL + 200)
  ((batch, _),) = _take(pipeline, 1)
  assert ('a', 'too long') in pipeline.skipped and batch['segments'].max() > 1
  assert max(np.unique(row, return_counts=True)[1][1:].max() for row in batch['segments']) < 200
  source.too_long = 'cut_text'
  ((batch, _),) = _take(_pipeline([source], [1], wide, max_length=VISUAL + 200), 1)
  lengths = [np.unique(row, return_counts=True)[1][1:].max() for row in batch['segments']]
  assert max(lengths) == VISUAL + 200


def test_an_example_without_an_answer_after_the_cut_is_skipped():
  source = Fake('a', 4, spoil=lambda index: {'answer': 'x' * 400} if index == 1 else {})
  source.too_long = 'cut_text'
  pipeline = _pipeline([source], [1], batch=BATCH | {'seq_len': VISUAL + 12})
  list(pipeline.batches(examples=4))
  assert ('a', 'too long') not in pipeline.skipped
  pipeline = _pipeline([source], [1], batch=BATCH | {'seq_len': VISUAL + 3})
  with pytest.raises(
    SphinxError, match='3 bad among the first 4 examples .*too long.*no answer begins'
  ):
    list(pipeline.batches(examples=4))


def test_every_host_reads_the_images_of_its_rows_alone(tmp_path, monkeypatch):
  """An unreadable one is counted by its host, and the others plan the same rows."""
  lines = []
  for i in range(24):
    (tmp_path / f'{i}.png').write_bytes(b'torn' if i == 5 else _png(i))
    turns = [{'from': 'human', 'value': 'Q'}, {'from': 'gpt', 'value': 'a' * (i % 5 + 1)}]
    lines.append(json.dumps({'image': f'{i}.png', 'conversations': turns}))
  (tmp_path / 'my.jsonl').write_text('\n'.join(lines))
  read, seen = files.read_image, []
  monkeypatch.setattr(files, 'read_image', lambda *image: seen.append(image) or read(*image))

  def batches(local_rows=None):
    seen.clear()
    source = jsonl.open_source({'path': str(tmp_path / 'my.jsonl')})
    pipeline = _pipeline([source], [1], local_rows=local_rows)
    return [batch for batch, _ in pipeline.batches(examples=24)], sum(pipeline.skipped.values())

  (*whole,), skipped = batches()
  assert len(seen) == 24 and skipped == 1
  for row in range(4):
    mine, skipped = batches([row])
    assert len(seen) < 12 and skipped == any(str(path).endswith('/5.png') for _, path in seen)
    for batch, all_rows in zip(mine, whole, strict=True):
      assert _equal({name: all_rows[name][row : row + 1] for name in ROW_FIELDS}, batch)


@pytest.mark.parametrize('answer', ['', 'long ' * 99])
def test_a_long_run_stops_where_its_data_turn_bad(answer):
  """Not only the beginning of a run is checked."""
  source = Fake('a', 6000, spoil=lambda index: {'answer': answer} if turned else {})
  turned = False
  with _pipeline([source], [1], max_skipped=0.3).batches() as batches:
    while next(batches)[1] < 2500:
      pass
    turned = True
    with pytest.raises(
      SphinxError, match=r'got 301 bad among the 1000 examples from .,000 on .*at most 30%'
    ):
      for _ in batches:
        pass


@pytest.mark.parametrize('most, bad', [(0, 1), (1, 40)])
def test_the_share_that_may_be_bad_is_a_setting(most, bad):
  pipeline = _pipeline(
    [Fake('a', 40, spoil=lambda index: {'answer': ''} if index < bad else {})],
    [1],
    max_skipped=most,
  )
  if most:
    assert list(pipeline.batches(examples=40)) == [] and pipeline.skipped['a', 'empty answer'] == 40
  else:
    with pytest.raises(SphinxError, match='got 1 bad among the first 40 examples'):
      list(pipeline.batches(examples=40))


def torn(index):
  return {'images': (b'torn',)}


@pytest.mark.parametrize('spoil', [lambda index: {'answer': ''}, torn])
@pytest.mark.parametrize('others', [(), (Fake('b', 300, image=False),)])
def test_a_source_without_a_usable_example_stops_an_endless_pass(spoil, others):
  sources = [Fake('a', 11, spoil=spoil), *others]
  batches = _pipeline(sources, [1] * len(sources), max_skipped=1.0).batches()
  with batches, pytest.raises(SphinxError, match="task 'a': got 11 examples, all of them bad"):
    for _ in range(200):
      next(batches)


@pytest.mark.parametrize('image', [True, False])
def test_one_usable_example_of_many_is_enough(image):
  spoil = lambda index: {'answer': ''} if index % 2 else {} if index == 4 else torn(index)
  pipeline = _pipeline([Fake('a', 11, image=image, spoil=spoil)], [1], max_skipped=1.0)
  assert set(_answers(_take(pipeline, 20))) == {'a4'}


def test_images_for_a_model_without_encoders_are_refused_before_training():
  config = PipelineConfig(**BATCH, visual_tokens=0, image_size=SIZE)

  def pipeline(*sources):
    named = {source.name: source for source in sources}
    return Pipeline(named, dict.fromkeys(named, 1), TOKENIZER, NO_SYSTEM, config)

  _take(pipeline(Fake('b', 17, image=False)), 1)
  with pytest.raises(SphinxError, match="task 'a': got an image.*the model has no encoder"):
    pipeline(Fake('b', 17, image=False), Fake('a', 10))
  late = Fake(
    'a', 1000, image=False, spoil=lambda index: {'images': (_png(0),)} if index == 9 else {}
  )
  with pytest.raises(SphinxError, match='the model has no encoder'):
    list(pipeline(late).batches(examples=1000))


def test_a_short_rest_is_not_a_stretch_of_its_own():
  source = Fake('a', 1001, spoil=lambda index: {'answer': ''} if index == last else {})
  last = int(Mixture([1], [1001]).lookup(np.array([1000]))[1][0])
  pipeline = _pipeline([source], [1])
  list(pipeline.batches(examples=1001))
  assert pipeline.skipped == {('a', 'empty answer'): 1}


def test_each_of_several_hosts_stops_at_unreadable_images():
  """Although it decodes only its share of them."""
  with pytest.raises(SphinxError, match='bad among the first 1000 examples'):
    for _ in _pipeline(
      [Fake('a', 50, spoil=lambda index: {'images': (b'torn',)})], [1], local_rows=(0,)
    ).batches():
      pass


def test_boxes_that_sources_drop_are_counted_apart():
  source = Fake('a', 16)
  source.dropped = Counter({'box outside the image or empty': 3})
  pipeline = _pipeline([source, Fake('b', 16)], [1, 1])
  assert pipeline.dropped() == {('a', 'box outside the image or empty'): 3} and not pipeline.skipped
  pipeline.skipped['b', 'empty answer'] = 2
  assert pipeline.summary(0).splitlines() == [
    *pipeline.table().splitlines(),
    'skipped 2 examples of b: empty answer',
    'left out in examples of a: 3 times box outside the image or empty',
  ]


@pytest.mark.parametrize('shape', [(6, 12), (12, 7)])
def test_a_mirrored_image_has_its_object_in_its_box(shape):
  """The box of a record is that of the mirrored image, so the pixels must be mirrored too."""
  height, width = shape
  pixels = np.zeros((*shape, 3), np.uint8)
  pixels[2:5, 1:4] = 255
  (box,) = geometry.on_square(
    {'objects': [{'name': 'it', 'box': [1, 2, 4, 5]}]}, width, height, mirrored=True
  )['objects']
  side = max(shape)
  x1, y1, x2, y2 = (round(number * side) for number in box['box'])
  source = [Record('a/0', 'a', (_encode(pixels),), (('Q', 'so'),), ({},), True)]
  source = type('Mirrored', (list, Source), {'name': 'a'})(source)
  ((batch, _),) = list(_pipeline([source], [1], image_size=side).batches(examples=1))
  bright = batch['images'][0, 0, :, :, 0] == 255
  assert bright[y1:y2, x1:x2].all() and bright.sum() == 9


@pytest.mark.parametrize('spoil', [{'answer': ''}, {'images': (b'torn',)}])
def test_mostly_bad_data_stops(spoil):
  pipeline = _pipeline([Fake('a', 50, spoil=lambda index: spoil if index % 5 else {})], [1])
  with pytest.raises(SphinxError, match='data: got 501 bad among the first 1000 examples'):
    for _ in pipeline.batches():
      pass


def test_repeated_problems_are_logged_only_a_few_times(caplog):
  pipeline = _pipeline(
    [Fake('a', 100, spoil=lambda index: {'answer': ''} if index % 3 == 0 else {})], [1]
  )
  list(pipeline.batches(examples=400))
  assert pipeline.skipped['a', 'empty answer'] == 136
  assert len(caplog.records) == 7  # 1 to 5, 10, 100


def test_an_error_of_a_thread_reaches_the_caller():
  def spoil(index):
    raise KeyError('a bug in a source')

  with pytest.raises(KeyError, match='a bug in a source'):
    next(_pipeline([Fake('a', 10, spoil=spoil)], [1]).batches())


@pytest.mark.parametrize('end', ['close', 'drop'])
def test_an_unfinished_pass_ends_its_threads(end):
  before = threading.active_count()
  batches = _pipeline().batches()
  next(batches)
  if end == 'close':
    batches.close()
    assert list(batches) == []
  del batches
  deadline = time.monotonic() + 5
  while threading.active_count() > before and time.monotonic() < deadline:
    time.sleep(0.02)
  assert threading.active_count() <= before


def test_table_shows_the_mixture():
  pipeline = _pipeline()
  position = _take(pipeline, 8)[-1][1]
  lines = pipeline.table(position).splitlines()
  assert lines[0].split() == ['task', 'source', 'examples', 'weight', 'share', 'epochs']
  assert [line.split()[0] for line in lines[1:]] == ['a', 'b', 'c']
  assert lines[1].split()[1:5] == ['a', '10', '0.5', '0.500']
  assert float(lines[1].split()[5]) > 1 > float(pipeline.table().splitlines()[1].split()[5]) == 0


def test_weights_by_tokens_share_out_the_positions():
  long, short = (
    Fake('long', 10, spoil=lambda index: {'answer': 'so ' * 12}),
    Fake('short', 10, image=False),
  )
  pipeline = _pipeline([long, short], [1, 1], sampling={'by': 'tokens'})
  positions = np.zeros(2)
  for batch, _ in _take(pipeline, 60):
    positions += np.bincount(batch['task'][batch['segments'] > 0], minlength=2)
  assert positions[0] / positions.sum() == pytest.approx(0.5, abs=0.03)
  assert pipeline.table().splitlines()[0].split()[-3:] == ['share', 'tokens', 'epochs']


class Huge(Fake):
  """More examples than a list could hold."""

  def __len__(self):
    return 10**9


@pytest.mark.parametrize('sampling', [None, {'by': 'tokens', 'stages': ((10**8, {'b': 0.1}),)}])
def test_a_billion_examples_from_any_position(sampling):
  def pipeline():
    return _pipeline([Huge('a', 0), Huge('b', 0, image=False)], [0.5, 0.5], sampling=sampling)

  for position in (0, 10**9, 10**12):
    (_, after), (batch, _) = _take(pipeline(), 2, position)
    ((again, _),) = _take(pipeline(), 1, after)
    contract.check(batch, VISUAL)
    assert _equal(batch, again)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(max_skipped=3), 'max_skipped: got 3'),
    (dict(alpha='whit'), "image.alpha: got 'whit'.*did you mean 'white'"),
    (dict(sources=[Fake('a', 0)], weights=[0.3]), "task 'a': got weight 0.3 but 0 examples"),
    (
      dict(batch=BATCH | {'seq_len': 6}),
      'got 6 positions, expected more than BOS and an image of 5',
    ),
    (dict(loss_weighting='none'), "loss weighting: got 'none'"),
  ],
)
def test_refuses_settings_that_cannot_work(change, message):
  with pytest.raises(SphinxError, match=message):
    _pipeline(**change)


def test_a_task_of_weight_zero_may_be_empty():
  batches = list(_pipeline([Fake('a', 8), Fake('b', 0)], [1, 0]).batches(examples=8))
  assert sum(_answers(batches).values()) == 8


def test_a_source_gets_the_epoch():
  class Wordy(Fake):
    def read(self, index, epoch):
      record = self[index]
      return Record(record.id, record.task, record.images, ((f'Q {epoch}', f'e{epoch}'),), ({},))

  pipeline = _pipeline([Wordy('a', 10)], [1.0])
  with pipeline.batches(examples=32) as batches:
    assert _answers(batches) == {'e0': 10, 'e1': 10, 'e2': 10, 'e3': 2}


class Several(Source):
  """Record i has images of the colors 10 i, 10 i + 1, ..., each at its mark."""

  name = 'several'

  def __init__(self, counts):
    self._counts = counts

  def __len__(self):
    return len(self._counts)

  def __getitem__(self, index):
    count = self._counts[index]
    images = tuple(_png(10 * index + i) for i in range(count))
    turns = (('Q' + ' and <image>' * count, f'a{index}'),)
    return Record(f'several/{index}', 'a', images, turns, ({},), marks='inline')


def test_images_of_an_example_stand_at_their_marks_and_too_many_are_counted(caplog):
  counts = (2, 1, 3, 0, 2, 4)
  pipeline = _pipeline([Several(counts)], [1], BATCH | {'slots': 3}, max_skipped=1.0)
  seen = {}
  for batch, _ in pipeline.batches(examples=len(counts)):
    contract.check(batch, VISUAL)
    for row, segments in enumerate(batch['segments']):
      for segment in range(1, segments.max() + 1):
        at = segments == segment
        index = batch['visual_index'][row, at]
        slots = index[index >= 0][::VISUAL] // VISUAL
        colors = batch['images'][row, slots, 0, 0, 0].tolist()
        seen[colors[0] // 10 if colors else 3] = colors
        # Text stands between the images.
        assert (np.diff(np.flatnonzero(index >= 0)) > 1).sum() == max(len(colors) - 1, 0)
  assert seen == {i: [10 * i + n for n in range(count)] for i, count in enumerate(counts[:5])}
  assert pipeline.skipped == {('several', 'no image slot'): 1}
  assert '4 images take 4 slots, but batch.images is 3' in caplog.text


def test_one_damaged_image_of_several_makes_a_bad_example():
  class Damaged(Several):
    def __getitem__(self, index):
      record = super().__getitem__(index)
      if index != 1:
        return record
      return dataclasses.replace(record, images=(record.images[0], b'no image'))

  pipeline = _pipeline([Damaged((2, 2, 2))], [1], BATCH | {'slots': 4}, max_skipped=1.0)
  batches = [batch for batch, _ in pipeline.batches(examples=3)]
  assert pipeline.skipped == {('several', 'unreadable image'): 1}
  assert sum(int(batch['image_size'].any(axis=-1).sum()) for batch in batches) == 4


def test_marks_that_disagree_with_the_images_are_counted(caplog):
  class Wrong(Several):
    def __getitem__(self, index):
      record = super().__getitem__(index)
      return dataclasses.replace(record, images=record.images[: 2 if index else None])

  pipeline = _pipeline([Wrong((1, 3))], [1], BATCH | {'slots': 4}, max_skipped=1.0)
  list(pipeline.batches(examples=2))
  assert pipeline.skipped == {('several', 'image marks'): 1}
  assert '2 images and 3 <image> marks' in caplog.text
