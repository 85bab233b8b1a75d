import jax
import ml_collections
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax import convert
from sphinx_jax.checkpoint import store
from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import config as config_lib, errors, trees
from sphinx_jax.data import tokenizer
from sphinx_jax.models import families
from tests import release
from tests.models import small

VOCAB = 512
WORDS = tokenizer.Tokenizer(release.TOKENIZER.read_bytes())


def save(folder, config, params, system='Be brief.'):
  """Saves a checkpoint as training does, at step 3."""
  run_config = ml_collections.ConfigDict({'name': 'run', 'model': config.to_dict(), 'steps': 3})
  carried = Bundle(run_config, release.TOKENIZER.read_bytes(), {'system': system})
  with store.Store(folder) as run:
    run.save(3, params, {'moments': np.zeros(2)}, carried.to_meta())
  return folder


@pytest.fixture(scope='module')
def vision_run(tmp_path_factory):
  """A run of a tiny model with CLIP alone at half the image's size, which compiles fast."""
  encoders = dict(clip=dict(view=8, patch=2, width=8, layers=1, heads=2, activation='gelu'))
  config = small.light(encoders=encoders, half_round=True)
  config.llm.vocab = VOCAB
  return save(
    tmp_path_factory.mktemp('run'), config, small.weights(families.abstract_params(config))
  )


@pytest.fixture(scope='module')
def vision_model(vision_run):
  return sphinx_jax.load(vision_run)


@pytest.fixture(scope='module')
def text_folder(tmp_path_factory):
  """A language model as Meta releases it."""
  place = tmp_path_factory.mktemp('meta')
  return release.write_meta(
    place, release.tensors(release.llama_shapes()), config=release.LLAMA | {'max_seq_len': 96}
  )


@pytest.fixture(scope='module')
def text_model(text_folder):
  return sphinx_jax.load(text_folder)


def tokens(rows=2, length=9):
  drawn = np.random.default_rng(0).integers(3, VOCAB, (rows, length)).astype(np.int32)
  drawn[:, 0] = 1
  return drawn


def random_images(*sizes):
  return [
    np.random.default_rng(i).integers(0, 256, (*size, 3)).astype(np.uint8)
    for i, size in enumerate(sizes)
  ]


IMAGES = random_images((16, 16), (20, 9))


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
    lambda leaf: leaf.astype(dtype), small.weights(families.abstract_params(config))
  )
  run = save(tmp_path / 'run', config, params)
  convert.export_checkpoint(run, tmp_path / 'official', 'official', 2)
  convert.import_checkpoint(convert.open_sources([tmp_path / 'official']), tmp_path / 'ours')
  model = sphinx_jax.load(run)
  assert trees.flatten(model.params)['llm/embed'].dtype == dtype
  for place in (run / 'checkpoints' / '3', tmp_path / 'official', tmp_path / 'ours'):
    assert_one_model(sphinx_jax.load(place), model)


def test_logits_of_a_folder_and_of_its_conversion_are_equal(text_folder, text_model, tmp_path):
  convert.import_checkpoint(convert.open_sources([text_folder]), tmp_path / 'ours')
  ours = sphinx_jax.load(tmp_path / 'ours')
  assert_one_model(ours, text_model)
  logits = text_model.logits(tokens())
  assert logits.shape == (2, 9, VOCAB) and logits.dtype == np.float32
  np.testing.assert_array_equal(ours.logits(tokens()), logits)


def test_index_t_depends_on_the_image_and_the_tokens_up_to_t(vision_model):
  logits = np.asarray(vision_model.logits(tokens(), IMAGES))
  assert logits.shape == (2, 9, VOCAB) and np.isfinite(logits).all()
  later = tokens()
  later[:, 5:] = 7
  changed = np.asarray(vision_model.logits(later, IMAGES))
  np.testing.assert_allclose(changed[:, :5], logits[:, :5], atol=1e-5)
  assert not np.allclose(changed[:, 5], logits[:, 5])
  swapped = np.asarray(vision_model.logits(tokens(), IMAGES[::-1]))
  # The logits at index 0 come from the image's last token.
  assert not np.allclose(swapped[:, 0], logits[:, 0])


def test_generate_follows_the_likeliest_logits(vision_model):
  ids = WORDS.encode('What is the color?', bos=True)
  new = []
  for _ in range(3):
    padded = np.zeros((1, len(ids) + 3), np.int32)
    padded[0, : len(ids) + len(new)] = [*ids, *new]
    new.append(int(np.argmax(vision_model.logits(padded, IMAGES[:1])[0, len(ids) + len(new) - 1])))
  expected = (
    WORDS.decode(new[: new.index(WORDS.eos)] if WORDS.eos in new else new).split('###')[0].strip()
  )
  assert vision_model.generate(['What is the color?'], IMAGES[:1], max_new_tokens=3) == [expected]


def test_what_a_row_gets_does_not_depend_on_the_others(vision_model):
  prompts, images = (
    ['one', 'What is the color of the shape?', 'two three'],
    [IMAGES[0], None, IMAGES[1]],
  )
  together = vision_model.generate(prompts, images, max_new_tokens=5)
  assert len(set(together)) > 1
  assert together[0] == vision_model.generate(prompts[:1], images[:1], max_new_tokens=5)[0]
  assert (
    together[0]
    == vision_model.generate(
      [prompts[0], 'other', 'words'], [IMAGES[0], IMAGES[1], None], max_new_tokens=5
    )[0]
  )


def test_a_seed_draws_the_same_again_whatever_the_other_rows_are(text_model):
  draw = lambda seed, other='two': text_model.generate(
    ['one', other], max_new_tokens=8, temperature=2.0, seed=seed
  )
  assert draw(1) == draw(1) != draw(2)
  assert draw(1)[0] == draw(1, 'three')[0]


def test_chat_renders_the_dialog_that_the_checkpoint_carries(vision_model):
  turns = [('What?', 'a circle'), ('Where?', None)]
  text = 'Be brief.\n\n### Human: What?\n### Assistant: a circle\n### Human: Where?\n### Assistant:'
  assert (
    vision_model.chat(turns, IMAGES[0], max_new_tokens=4)
    == vision_model.generate([text], IMAGES[:1], max_new_tokens=4)[0]
  )


def test_options_change_what_they_should_and_nothing_else(vision_run, vision_model):
  plain = np.asarray(vision_model.encode(IMAGES))
  float_ = np.asarray(sphinx_jax.load(vision_run, half_round=False).encode(IMAGES))
  quick = np.asarray(sphinx_jax.load(vision_run, clip_activation='quick_gelu').encode(IMAGES))
  assert 0 < np.abs(float_ - plain).max() < 0.02 < np.abs(quick - plain).max() < 1
  np.testing.assert_array_equal(
    sphinx_jax.load(vision_run, half_round=True, clip_activation='gelu').encode(IMAGES), plain
  )
  assert vision_model.config.half_round and vision_model.config.encoders.clip.activation == 'gelu'


def test_dtype_is_the_compute_dtype(text_folder, text_model):
  model = sphinx_jax.load(text_folder, dtype='bfloat16')
  logits = model.logits(tokens())
  assert (
    logits.dtype == np.float32
    and 0 < np.abs(np.asarray(logits) - np.asarray(text_model.logits(tokens()))).max() < 0.5
  )
  assert_one_model(sphinx_jax.load(text_folder, dtype='float32'), text_model)
  assert trees.flatten(model.params)['llm/embed'].dtype == np.float32


def test_without_a_tokenizer_there_are_logits_but_no_text(text_folder, text_model, tmp_path):
  model = sphinx_jax.load(
    release.write_meta(tmp_path, release.tensors(release.llama_shapes()), tokenizer=False)
  )
  np.testing.assert_array_equal(model.logits(tokens()), text_model.logits(tokens()))
  for call in (lambda: model.generate(['a']), lambda: model.chat([('a', None)])):
    with pytest.raises(errors.SphinxError, match='without a tokenizer.*--tokenizer=FILE'):
      call()


@pytest.mark.parametrize(
  'call, words',
  [
    (
      lambda text, vision: vision.logits(tokens(), IMAGES[:1]),
      '1 images for 2 rows',
    ),
    (lambda text, vision: text.logits(tokens(), IMAGES), 'a language model alone'),
    (
      lambda text, vision: text.generate(['a'], IMAGES[:1]),
      'a language model alone',
    ),
    (
      lambda text, vision: text.chat([('a', None)], IMAGES[0]),
      'a language model alone',
    ),
    (
      lambda text, vision: text.generate(['short', 'one two ' * 50], max_new_tokens=2),
      'llm.max_length=96',
    ),
    (
      lambda text, vision: text.chat([('one two ' * 50, None)]),
      'llm.max_length=96',
    ),
    (
      lambda text, vision: vision.generate(['one two ' * 23], IMAGES[:1]),
      'image included.*llm.max_length=128',
    ),
    (lambda text, vision: text.logits(tokens() + VOCAB), 'of 513 to 1.*0 to 511'),
    (lambda text, vision: text.logits(tokens() - 4), 'of -3 to'),
    (
      lambda text, vision: text.logits(tokens().astype(np.float32)),
      'tokens float32',
    ),
    (lambda text, vision: text.logits(tokens()[0]), r'\[rows, positions\]'),
    (
      lambda text, vision: vision.logits(tokens(), [image / 255 for image in IMAGES]),
      r'image: got float64\[.*uint8',
    ),
    (
      lambda text, vision: vision.logits(tokens(), [image[..., 0] for image in IMAGES]),
      'image: got uint8',
    ),
    (
      lambda text, vision: vision.logits(tokens(), [['a.png'], None]),
      "image: got 'str'",
    ),
    (lambda text, vision: text.generate('one text'), 'a list of texts'),
    (
      lambda text, vision: vision.generate(['a', 'b'], IMAGES[:1]),
      '1 images for 2 prompts',
    ),
    (
      lambda text, vision: text.generate(['a'], temperature=-1.0),
      'temperature >= 0',
    ),
    (lambda text, vision: text.generate(['a'], temperature=float('nan')), 'temperature=nan'),
    (lambda text, vision: text.generate(['a'], seed=10**20), 'a seed of 64 bits'),
    (
      lambda text, vision: text.generate(['a'], temperature=1.0, top_p=2.0),
      'top_p=2.0',
    ),
    (lambda text, vision: text.chat([]), 'an open question'),
    (lambda text, vision: text.chat([('a', 'b')]), 'an open question'),
    (lambda text, vision: text.chat('what?'), 'an open question'),
    (lambda text, vision: text.chat([('a',)]), 'an open question'),
    (lambda text, vision: text.chat([{'role': 'user', 'content': 'a'}]), 'an open question'),
    (lambda text, vision: text.chat([('a', None), ('b', None)]), 'an open question'),
  ],
)
def test_an_error_of_a_call_is_one_clear_line(text_model, vision_model, call, words):
  with pytest.raises(errors.SphinxError, match=words) as caught:
    call(text_model, vision_model)
  assert '\n' not in str(caught.value)


def test_an_error_of_loading_is_one_clear_line(text_folder, tmp_path):
  for call, words in (
    (lambda: sphinx_jax.load(tmp_path / 'x'), 'no such file or folder'),
    (lambda: sphinx_jax.load(tmp_path), r'a folder with \[\]'),
    (lambda: sphinx_jax.load(text_folder, clip_activation='gelu'), 'a model with CLIP'),
    (
      lambda: sphinx_jax.load(text_folder, clip_activation='relu'),
      "'relu', expected one of gelu, quick_gelu",
    ),
    (lambda: sphinx_jax.load(text_folder, dtype='float31'), "did you mean 'float32'"),
  ):
    with pytest.raises(errors.SphinxError, match=words):
      call()


def test_a_context_that_is_full_ends_the_answer(text_model):
  """The prompt is never cut. The answer stops at llm.max_length."""
  prompt = 'one two ' * 17
  room = 96 - len(WORDS.encode(prompt, bos=True))
  assert 0 < room < 20
  assert text_model.generate([prompt], max_new_tokens=500) == text_model.generate(
    [prompt], max_new_tokens=room
  )


# The test below loads over the other mesh.
@pytest.mark.parametrize('mesh', ['serving', pytest.param('fsdp_tensor', marks=pytest.mark.slow)])
def test_a_model_over_all_devices_gives_what_one_device_gives(mesh, tmp_path):
  encoders = dict(clip=dict(view=8, patch=2, width=16, layers=1, heads=8))
  config = small.light(encoders=encoders)
  config.llm.update(vocab=VOCAB, width=32, heads=8, kv_heads=8)
  run = save(tmp_path, config, small.weights(families.abstract_params(config)))
  alone, spread = sphinx_jax.load(run), sphinx_jax.load(run, mesh=mesh)
  matrices = [
    leaf
    for path, leaf in trees.flatten(spread.params).items()
    if path.startswith('llm/layers') and leaf.ndim > 2
  ]
  assert len(matrices) == 7 and all(
    leaf.addressable_shards[0].data.size == leaf.size // 8 for leaf in matrices
  )
  np.testing.assert_allclose(
    spread.logits(tokens(), IMAGES), alone.logits(tokens(), IMAGES), atol=1e-4
  )
  ask = lambda model: model.generate(['one', 'two'], [IMAGES[0], None], max_new_tokens=6)
  assert ask(spread) == ask(alone)


def test_foreign_folders_are_sharded_too(text_folder, text_model):
  spread = sphinx_jax.load(text_folder, mesh='fsdp_tensor')
  assert_one_model(spread, text_model)
  assert trees.flatten(spread.params)['llm/layers/feed_forward/w1/kernel'].sharding.mesh.size == 8
  with pytest.raises(errors.SphinxError, match="did you mean 'serving'"):
    sphinx_jax.load(text_folder, mesh='served')
