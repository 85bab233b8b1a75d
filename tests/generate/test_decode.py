import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import batch, errors
from sphinx_jax.data import dialog
from sphinx_jax.generate import decode
from sphinx_jax.generate.model import Model
from sphinx_jax.models import families, sphinx
from tests.generate import small


@functools.cache
def forward():
  return jax.jit(
    lambda *fields: families.build(small.config()).apply({'params': small.params()}, *fields)
  )


def full_forward(model, turns, image, count):
  """The reference: greedy ids by a whole forward pass for every token, without cache or bucket."""
  tokenizer, stop_text = model.tokenizer, model.template.stop
  images_at = () if image is None else (1,)
  images = np.zeros((1, 1, 16, 16, 3), np.uint8) if image is None else image[None, None]
  prompt = model.template.prompt(turns, tokenizer).ids
  new = []
  while len(new) < count and not (new and new[-1] == tokenizer.eos):
    tokens, index = batch.interleave([*prompt, *new], images_at, model.visual_tokens)
    padding = (0, 96 - len(tokens))
    row = (
      np.pad(tokens, padding),
      np.pad(index, padding),
      np.arange(96),
      np.arange(96) < len(tokens),
    )
    logits = forward()(*(part[None].astype(np.int32) for part in row), images)
    new.append(int(jnp.argmax(logits[0, len(tokens) - 1])))
    if stop_text in tokenizer.decode(new):
      break
  text = tokenizer.decode([i for i in new if i != tokenizer.eos])
  return text.split(stop_text)[0].strip()


def test_greedy_decoding_with_a_cache_equals_full_forward_passes():
  model, images = small.model(), [*small.images(2), None]
  dialogs = [[(question, None)] for question in small.QUESTIONS[:2]] + [
    [('red', 'blue'), ('one', None)]
  ]
  answers = model.answers(dialogs, images, max_new_tokens=7)
  assert answers == [full_forward(model, turns, image, 7) for turns, image in zip(dialogs, images)]
  assert len(set(answers)) == 3 and all(answers)  # Otherwise equality would prove little.


@pytest.mark.parametrize('sampling', [{}, {'temperature': 1.0, 'top_p': 0.9, 'seed': 5}])
def test_a_row_does_not_depend_on_its_neighbours(sampling):
  dialogs, images = (
    [[(question, None)] for question in small.QUESTIONS],
    [*small.images(4), None, None],
  )
  limits = [9, 3, 12, 5, 7, 1]
  together = small.model().answers(dialogs, images, max_new_tokens=limits, batch_size=4, **sampling)
  other_batches = small.model(bucket=64).answers(
    dialogs,
    images,
    max_new_tokens=limits,
    expected=[6, 5, 4, 3, 2, 1],
    batch_size=2,
    **sampling,
  )
  assert together == other_batches
  alone = small.model().answers(dialogs[:1], images[:1], max_new_tokens=limits[:1], **sampling)
  assert alone == together[:1]


def test_a_single_answer_can_be_read_along():
  dialogs, pieces = [[(question, None)] for question in small.QUESTIONS[:2]], []
  model = small.model()
  (whole,) = model.answers(dialogs[:1], max_new_tokens=40)
  assert model.answers(dialogs[:1], max_new_tokens=40, deliver=pieces.append) == [whole]
  text = ''.join(pieces)
  assert len(pieces) > 3 and whole.startswith(text) and len(text) > len(whole) / 2
  with pytest.raises(errors.SphinxError, match='2 prompts to deliver'):
    model.answers(dialogs, deliver=pieces.append)


def test_an_answer_does_not_depend_on_when_other_rows_leave_the_batch(monkeypatch):
  dialogs, images = (
    [[(question, None)] for question in small.QUESTIONS[:2] * 4],
    [*small.images(4)] * 2,
  )
  limits = [9, 1, 2, 1, 7, 1, 2, 3]
  whole = small.model().answers(dialogs, images, max_new_tokens=limits)
  sizes, choose = [], decode.choose

  def record(carry, rows, chosen):
    sizes.append((len(carry.done), len(chosen)))
    return choose(carry, rows, chosen)

  monkeypatch.setattr(decode, 'CHUNK', 2)
  monkeypatch.setattr(decode, 'choose', record)
  model = Model(small.config(), small.params(), small.tokenizer(), small.model().template)
  assert model.answers(dialogs, images, max_new_tokens=limits) == whole
  assert sizes == [(8, 4)]


def test_the_answer_depends_on_the_image_and_on_the_seed():
  model, (first, second) = small.model(), small.images(2)
  turns = [('What is the color?', None)]
  answers = model.answers([turns, turns, turns], [first, second, first], max_new_tokens=8)
  assert answers[0] == answers[2] != answers[1]
  drawn = {
    model.answers([turns], [first], max_new_tokens=8, temperature=1.5, seed=seed)[0]
    for seed in range(4)
  }
  assert len(drawn) > 1


def test_other_parameters_give_other_answers_without_another_compilation(monkeypatch):
  image, dialogs = small.images(1), [[('What is the color?', None)]]
  mirrored = jax.tree.map(lambda leaf: -leaf, small.params())
  own = small.model().answers(dialogs, image, max_new_tokens=8)
  with monkeypatch.context() as patch:
    patch.setattr(sphinx.Sphinx, 'apply', None)  # Nothing can be traced.
    other = small.model().answers(dialogs, image, max_new_tokens=8, params=mirrored)
  model = Model(small.config(), mirrored, small.tokenizer(), small.model().template, bucket=32)
  assert other == model.answers(dialogs, image, max_new_tokens=8) != own


def script(monkeypatch, text, length=30):
  """Makes every model say `text` and then EOS, whatever it is asked."""
  tokenizer = small.tokenizer()
  answer = [*tokenizer.encode(text), tokenizer.eos]
  asked = dialog.Template('').prompt([('q', None)], tokenizer).ids
  table = jnp.array(([0] * (len(asked) - 1) + answer + [0] * length)[:length])

  def apply(module, variables, tokens, visual_index, at, visual, cache=None, method=None):
    if method == 'prefill':  # `at` is the lengths, in place of the positions.
      at, cache = at - 1, families.init_cache(small.config(), *tokens.shape)
    token = table[jnp.minimum(at, length - 1)]
    return jnp.where(jnp.arange(320) == token[..., None], 1.0, 0.0), cache

  monkeypatch.setattr(sphinx.Sphinx, 'apply', apply)


def scripted(monkeypatch, text):
  script(monkeypatch, text)
  return Model(small.config(), {}, small.tokenizer(), dialog.Template(''), bucket=8)


def answer_ids(config, params, limit, seed=0, temperature=0.0):
  """Token ids that the device programs give for a short prompt."""
  tokenizer, template = small.tokenizer(), dialog.Template('')
  module = families.build(config)
  ending = decode.ending(template, tokenizer, config.llm.vocab)
  ids = template.prompt([('q', None)], tokenizer).ids
  fields = [field[None] for field in batch.interleave(ids, (), 0)]
  lengths = np.array([len(ids)], np.int32)
  logits, cache = decode.prefill(module, params, *fields, lengths, None)
  rows = decode.Rows(lengths, np.array([limit], np.int32), jax.random.key(seed)[None])
  carry = decode.begin(module, cache, logits, rows.limits, length=len(ids) + limit)

  def decode_some(carry, rows, until):
    settings = temperature, 1.0, until
    return decode.decode(module, ending, params, carry, rows, *settings, sample=temperature > 0)

  tokens = decode.decode_all(decode_some, decode.choose, carry, rows)
  return tokens[0][tokens[0] >= 0]


@pytest.mark.parametrize(
  'text, expected',
  [
    ('red circle\n### Human: blue', 'red circle'),
    ('red\n##x', 'red\n##x'),
    ('red', 'red'),
    ('\n###', ''),
    ('a ### b\n\n### c', 'a ### b'),
  ],
)
def test_answers_end_at_the_stop_text_or_at_eos(monkeypatch, text, expected):
  assert scripted(monkeypatch, text).answers([[('q', None)]], max_new_tokens=25) == [expected]


def test_the_loop_ends_at_the_stop_text(monkeypatch):
  script(monkeypatch, 'red\n### Human: one two three')
  ids = answer_ids(small.config(), {}, 25)
  assert small.tokenizer().decode(ids.tolist()) == 'red\n###'


def test_limits_cut_answers(monkeypatch):
  model = scripted(monkeypatch, 'one two three')
  count = len(model.tokenizer.encode('one'))
  assert model.answers([[('q', None)]] * 2, max_new_tokens=[count, 20], batch_size=2) == [
    'one',
    'one two three',
  ]


def test_ids_that_the_tokenizer_lacks_are_never_decoded():
  config = small.config(vocab=400)
  params = jax.tree.map(
    lambda leaf: np.ones(leaf.shape, np.float32), families.abstract_params(config)
  )
  ids = answer_ids(config, params, 40, seed=1, temperature=5.0)
  assert 0 <= ids.max() < small.tokenizer().vocab_size


def test_no_prompts_no_answers():
  assert small.model().answers([]) == []


def test_a_prompt_without_room_for_an_answer_is_refused():
  with pytest.raises(errors.SphinxError, match='max_length=256'):
    small.model().answers([[('one two three ' * 100, None)]])


@pytest.mark.parametrize('text', [float('nan'), 7, b'hi', '\ud800'])
def test_a_question_that_is_no_text_is_refused(text):
  with pytest.raises(errors.SphinxError, match='expected (a text|characters)'):
    small.model().answers([[(text, None)]])


def test_answers_are_cut_to_the_room_that_is_left():
  turns = [('one two ' * 25, None)]
  model = small.model()
  room = 256 - len(model.template.prompt(turns, model.tokenizer).ids)
  assert 0 < room < 200
  assert isinstance(model.answers([turns], max_new_tokens=500)[0], str)


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_refused():
  with pytest.raises(errors.SphinxError, match='320 tokens'):
    Model(small.config(vocab=300), {}, small.tokenizer(), dialog.Template())


@pytest.fixture
def logged_compilations(caplog):
  """The log, with a line for each compilation in any thread."""
  jax.config.update('jax_log_compiles', True)
  yield caplog
  jax.config.update('jax_log_compiles', False)


def test_programs_that_were_compiled_ahead_are_those_of_the_answer(logged_compilations):
  """Each program is compiled once, whether the images are encoded before or with the answer."""
  turns, (image,) = [('What is the color?', None)], small.images(1)
  committed = jax.device_put(small.params(), jax.devices()[0])
  answers, compiled = [], []
  for ahead in (True, False):
    jax.clear_caches()
    model = Model(small.config(), committed, small.tokenizer(), small.model().template, bucket=32)
    logged_compilations.clear()
    if ahead:
      model.compile_ahead(turns, 1, max_new_tokens=5, seed=1)
      answers += model.answers([turns], visual=model.encode([image]), max_new_tokens=5)
    else:
      answers += model.answers([turns], [image], max_new_tokens=5)
    names = re.findall(r'Finished XLA compilation of jit\((\w+)\)', logged_compilations.text)
    compiled.append(sorted(name for name in names if name in ('prefill', 'begin', 'decode')))
  assert compiled == [['begin', 'decode', 'prefill']] * 2
  assert answers[0] == answers[1] == small.model().answers([turns], [image], max_new_tokens=5)[0]
