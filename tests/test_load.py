import base64

import jax
import ml_collections
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import convert
from sphinx_jax.checkpoint import store
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.data import tokenizer
from sphinx_jax.models import sphinx
from tests import release
from tests.models import small

VOCAB = 512
WORDS = tokenizer.Tokenizer(release.TOKENIZER.read_bytes())


def save(folder, config, params, system='Be brief.'):
  """A checkpoint as training saves one, of the third step."""
  meta = {
    'config': config_lib.to_json(
      ml_collections.ConfigDict({'name': 'run', 'model': config.to_dict(), 'steps': 3})
    ),
    'tokenizer': base64.b64encode(release.TOKENIZER.read_bytes()).decode(),
    'dialog': {'system': system},
  }
  with store.Store(folder) as run:
    run.save(3, params, {'moments': np.zeros(2)}, meta)
  return folder


@pytest.fixture(scope='module')
def seeing(tmp_path_factory):
  """A run of a tiny model with CLIP alone, which sees the picture at half its size: quick to compile."""
  encoders = dict(clip=dict(view=8, patch=2, width=8, layers=1, heads=2, activation='gelu'))
  config = small.light(encoders=encoders, half_round=True)
  config.llm.vocab = VOCAB
  return save(tmp_path_factory.mktemp('run'), config, small.weights(sphinx.abstract_params(config)))


@pytest.fixture(scope='module')
def seer(seeing):
  return sphinx_jax.load(seeing)


@pytest.fixture(scope='module')
def reading(tmp_path_factory):
  """A language model as Meta releases it."""
  place = tmp_path_factory.mktemp('meta')
  return release.write_meta(
    place, release.tensors(release.llama_shapes()), config=release.LLAMA | {'max_seq_len': 96}
  )


@pytest.fixture(scope='module')
def reader(reading):
  return sphinx_jax.load(reading)


def tokens(rows=2, length=9):
  drawn = np.random.default_rng(0).integers(3, VOCAB, (rows, length)).astype(np.int32)
  drawn[:, 0] = 1
  return drawn


def pictures(*sizes):
  return [
    np.random.default_rng(i).integers(0, 256, (*size, 3)).astype(np.uint8)
    for i, size in enumerate(sizes)
  ]


TWO = pictures((16, 16), (20, 9))


def assert_one_model(a, b):
  """The same config and the same bits: so the same of everything."""
  assert config_lib.to_dict(a.config) == config_lib.to_dict(b.config)
  first, second = trees.flatten(a.params), trees.flatten(b.params)
  assert first.keys() == second.keys()
  for path, leaf in first.items():
    assert (
      leaf.dtype == second[path].dtype
      and np.asarray(leaf).tobytes() == np.asarray(second[path]).tobytes()
    ), path
  assert a.tokenizer.model_bytes == b.tokenizer.model_bytes


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_a_run_its_official_form_and_what_comes_back_are_one_model(tmp_path, dtype):
  """A training run's checkpoint, which Orbax wrote, through the official code's format and back."""
  config = convert.open_sources(
    [release.write_official(tmp_path / 'any', release.tensors(release.official_shapes()))]
  ).config
  params = jax.tree.map(
    lambda leaf: leaf.astype(dtype), small.weights(sphinx.abstract_params(config))
  )
  run = save(tmp_path / 'run', config, params)
  convert.take_out(run, tmp_path / 'official', 'official', 2)
  convert.read_in(convert.open_sources([tmp_path / 'official']), tmp_path / 'ours')
  model = sphinx_jax.load(run)
  assert trees.flatten(model.params)['llm/embed'].dtype == dtype
  for place in (run / 'checkpoints' / '3', tmp_path / 'official', tmp_path / 'ours'):
    assert_one_model(sphinx_jax.load(place), model)


def test_logits_of_a_folder_and_of_its_conversion_are_equal(reading, reader, tmp_path):
  convert.read_in(convert.open_sources([reading]), tmp_path / 'ours')
  ours = sphinx_jax.load(tmp_path / 'ours')
  assert_one_model(ours, reader)
  logits = reader.logits(tokens())
  assert logits.shape == (2, 9, VOCAB) and logits.dtype == np.float32
  np.testing.assert_array_equal(ours.logits(tokens()), logits)


def test_index_t_sees_the_image_and_the_tokens_up_to_t(seer):
  logits = np.asarray(seer.logits(tokens(), TWO))
  assert logits.shape == (2, 9, VOCAB) and np.isfinite(logits).all()
  later = tokens()
  later[:, 5:] = 7
  changed = np.asarray(seer.logits(later, TWO))
  np.testing.assert_allclose(changed[:, :5], logits[:, :5], atol=1e-5)
  assert not np.allclose(changed[:, 5], logits[:, 5])
  swapped = np.asarray(seer.logits(tokens(), TWO[::-1]))
  assert not np.allclose(swapped[:, 0], logits[:, 0])  # The first one comes from the image's end.


def test_generate_follows_the_likeliest_logits(seer):
  ids = WORDS.encode('What is the color?', bos=True)
  new = []
  for _ in range(3):
    padded = np.zeros((1, len(ids) + 3), np.int32)
    padded[0, : len(ids) + len(new)] = [*ids, *new]
    new.append(int(np.argmax(seer.logits(padded, TWO[:1])[0, len(ids) + len(new) - 1])))
  expected = (
    WORDS.decode(new[: new.index(WORDS.eos)] if WORDS.eos in new else new).split('###')[0].strip()
  )
  assert seer.generate(['What is the color?'], TWO[:1], max_new_tokens=3) == [expected]


def test_what_a_row_gets_does_not_depend_on_the_others(seer):
  prompts, images = ['one', 'What is the color of the shape?', 'two three'], [TWO[0], None, TWO[1]]
  together = seer.generate(prompts, images, max_new_tokens=5)
  assert len(set(together)) > 1
  assert together[0] == seer.generate(prompts[:1], images[:1], max_new_tokens=5)[0]
  assert (
    together[0]
    == seer.generate([prompts[0], 'other', 'words'], [TWO[0], TWO[1], None], max_new_tokens=5)[0]
  )


def test_a_seed_draws_the_same_again_whatever_the_other_rows_are(reader):
  draw = lambda seed, other='two': reader.generate(
    ['one', other], max_new_tokens=8, temperature=2.0, seed=seed
  )
  assert draw(1) == draw(1) != draw(2)
  assert draw(1)[0] == draw(1, 'three')[0]


def test_chat_renders_the_dialog_that_the_checkpoint_carries(seer):
  turns = [('What?', 'a circle'), ('Where?', None)]
  text = 'Be brief.\n\n### Human: What?\n### Assistant: a circle\n### Human: Where?\n### Assistant:'
  assert (
    seer.chat(turns, TWO[0], max_new_tokens=4)
    == seer.generate([text], TWO[:1], max_new_tokens=4)[0]
  )


def test_options_change_what_they_should_and_nothing_else(seeing, seer):
  plain = np.asarray(seer.encode(TWO))
  float_ = np.asarray(sphinx_jax.load(seeing, half_round=False).encode(TWO))
  quick = np.asarray(sphinx_jax.load(seeing, clip_activation='quick_gelu').encode(TWO))
  assert 0 < np.abs(float_ - plain).max() < 0.02 < np.abs(quick - plain).max() < 1
  np.testing.assert_array_equal(
    sphinx_jax.load(seeing, half_round=True, clip_activation='gelu').encode(TWO), plain
  )
  assert seer.config.half_round and seer.config.encoders.clip.activation == 'gelu'


def test_dtype_is_that_of_computation(reading, reader):
  model = sphinx_jax.load(reading, dtype='bfloat16')
  logits = model.logits(tokens())
  assert (
    logits.dtype == np.float32
    and 0 < np.abs(np.asarray(logits) - np.asarray(reader.logits(tokens()))).max() < 0.5
  )
  assert_one_model(sphinx_jax.load(reading, dtype='float32'), reader)
  assert trees.flatten(model.params)['llm/embed'].dtype == np.float32


def test_without_a_tokenizer_there_are_logits_but_no_text(reading, reader, tmp_path):
  model = sphinx_jax.load(
    release.write_meta(tmp_path, release.tensors(release.llama_shapes()), tokenizer=False)
  )
  np.testing.assert_array_equal(model.logits(tokens()), reader.logits(tokens()))
  for call in (lambda: model.generate(['a']), lambda: model.chat([('a', None)])):
    with pytest.raises(errors.SphinxError, match='without a tokenizer.*--tokenizer=FILE'):
      call()


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda reader, seer: seer.logits(tokens(), TWO[:1]), '1 images for 2 rows'),
    (lambda reader, seer: reader.logits(tokens(), TWO), 'a language model alone'),
    (lambda reader, seer: reader.generate(['a'], TWO[:1]), 'a language model alone'),
    (lambda reader, seer: reader.chat([('a', None)], TWO[0]), 'a language model alone'),
    (
      lambda reader, seer: reader.generate(['short', 'one two ' * 50], max_new_tokens=2),
      'llm.max_length=96',
    ),
    (lambda reader, seer: reader.chat([('one two ' * 50, None)]), 'llm.max_length=96'),
    (
      lambda reader, seer: seer.generate(['one two ' * 23], TWO[:1]),
      'image included.*llm.max_length=128',
    ),
    (lambda reader, seer: reader.logits(tokens() + VOCAB), 'of 513 to 1.*0 to 511'),
    (lambda reader, seer: reader.logits(tokens() - 4), 'of -3 to'),
    (lambda reader, seer: reader.logits(tokens().astype(np.float32)), 'tokens float32'),
    (lambda reader, seer: reader.logits(tokens()[0]), r'\[rows, positions\]'),
    (
      lambda reader, seer: seer.logits(tokens(), [picture / 255 for picture in TWO]),
      r'image: got float64\[.*uint8',
    ),
    (
      lambda reader, seer: seer.logits(tokens(), [picture[..., 0] for picture in TWO]),
      'image: got uint8',
    ),
    (lambda reader, seer: seer.logits(tokens(), [None, None]), "image: got 'NoneType'"),
    (lambda reader, seer: reader.generate('one text'), 'a list of texts'),
    (lambda reader, seer: seer.generate(['a', 'b'], TWO[:1]), '1 images for 2 prompts'),
    (lambda reader, seer: reader.generate(['a'], temperature=-1.0), 'temperature >= 0'),
    (lambda reader, seer: reader.generate(['a'], temperature=1.0, top_p=2.0), 'top_p=2.0'),
    (lambda reader, seer: reader.chat([]), 'an open question'),
    (lambda reader, seer: reader.chat([('a', 'b')]), 'an open question'),
    (lambda reader, seer: reader.chat('what?'), 'an open question'),
  ],
)
def test_what_cannot_be_is_one_clear_line(reader, seer, call, words):
  with pytest.raises(errors.SphinxError, match=words) as caught:
    call(reader, seer)
  assert '\n' not in str(caught.value)


def test_what_is_loaded_wrong_is_one_clear_line(reading, tmp_path):
  for call, words in (
    (lambda: sphinx_jax.load(tmp_path / 'x'), 'no such file or folder'),
    (lambda: sphinx_jax.load(tmp_path), r'a folder with \[\]'),
    (lambda: sphinx_jax.load(reading, clip_activation='gelu'), 'a model with CLIP'),
    (
      lambda: sphinx_jax.load(reading, clip_activation='relu'),
      "'relu', expected one of gelu, quick_gelu",
    ),
    (lambda: sphinx_jax.load(reading, dtype='float31'), "did you mean 'float32'"),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      call()


def test_a_context_that_is_full_ends_the_answer(reader):
  """Nothing of the prompt is cut; the answer stops where llm.max_length is reached."""
  prompt = 'one two ' * 17
  room = 96 - len(WORDS.encode(prompt, bos=True))
  assert 0 < room < 20
  assert reader.generate([prompt], max_new_tokens=500) == reader.generate(
    [prompt], max_new_tokens=room
  )


@pytest.mark.parametrize('layout', ['serving', 'fsdp_tensor'])
def test_a_model_over_all_devices_gives_what_one_device_gives(layout, tmp_path):
  encoders = dict(clip=dict(view=8, patch=2, width=16, layers=1, heads=8))
  config = small.light(encoders=encoders)
  config.llm.update(vocab=VOCAB, width=32, heads=8, kv_heads=8)
  run = save(tmp_path, config, small.weights(sphinx.abstract_params(config)))
  alone, spread = sphinx_jax.load(run), sphinx_jax.load(run, mesh=layout)
  matrices = [
    leaf
    for path, leaf in trees.flatten(spread.params).items()
    if path.startswith('llm/layers') and leaf.ndim > 2
  ]
  assert len(matrices) == 7 and all(
    leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in matrices
  )
  np.testing.assert_allclose(spread.logits(tokens(), TWO), alone.logits(tokens(), TWO), atol=1e-4)
  ask = lambda model: model.generate(['one', 'two'], [TWO[0], None], max_new_tokens=6)
  assert ask(spread) == ask(alone)


def test_folders_of_others_are_laid_out_too(reading, reader):
  spread = sphinx_jax.load(reading, mesh='fsdp_tensor')
  assert_one_model(spread, reader)
  assert trees.flatten(spread.params)['llm/layers/feed_forward/w1/kernel'].sharding.mesh.size == 8
  with pytest.raises(errors.SphinxError, match="did you mean 'serving'"):
    sphinx_jax.load(reading, mesh='served')
