import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.data import dialog
from sphinx_jax.generate import conversation, decode
from sphinx_jax.models import sphinx
from tests.generate import small

QUESTIONS = [
  'What is the color?',
  'one two three',
  'red',
  'What is the shape of the blue square, or of the circle?',
  'yes',
  'no',
]


@functools.cache
def forward():
  return jax.jit(
    lambda *batch: sphinx.build(small.config()).apply({'params': small.params()}, *batch)
  )


def full_forward(generator, turns, image, count):
  """The slow truth: greedy ids by a whole forward pass for every token, without cache or bucket."""
  tokenizer, slots = generator.tokenizer, generator.visual_tokens if image is not None else 0
  ids = generator.template.prompt(turns, tokenizer)
  tokens, index = [*ids[:1], *[0] * slots, *ids[1:]], [-1, *range(slots), *[-1] * (len(ids) - 1)]
  images = np.zeros((1, 1, 16, 16, 3), np.uint8) if image is None else image[None, None]
  new = []
  while len(new) < count and not (new and new[-1] == tokenizer.eos):
    padding = 96 - len(tokens)
    row = (
      np.pad(tokens, (0, padding)),
      np.pad(index, (0, padding)),
      np.arange(96),
      np.arange(96) < len(tokens),
    )
    logits = forward()(*(part[None].astype(np.int32) for part in row), images)
    new.append(int(jnp.argmax(logits[0, len(tokens) - 1])))
    tokens, index = tokens + new[-1:], index + [-1]
    if generator.template.stop in tokenizer.decode(new):
      break
  return (
    tokenizer.decode([i for i in new if i != tokenizer.eos])
    .split(generator.template.stop)[0]
    .strip()
  )


def test_greedy_decoding_with_a_cache_equals_full_forward_passes():
  generator, images = small.generator(), [*small.pictures(2), None]
  prompts = [[(question, None)] for question in QUESTIONS[:2]] + [[('red', 'blue'), ('one', None)]]
  answers = generator.answers(prompts, images, max_new_tokens=7)
  assert answers == [
    full_forward(generator, turns, image, 7) for turns, image in zip(prompts, images)
  ]
  assert len(set(answers)) == 3 and all(answers)  # otherwise equality would say little


@pytest.mark.parametrize('sampling', [{}, {'temperature': 1.0, 'top_p': 0.9, 'seed': 5}])
def test_a_row_does_not_depend_on_its_neighbours(sampling):
  prompts, images = [[(question, None)] for question in QUESTIONS], [*small.pictures(4), None, None]
  limits = [9, 3, 12, 5, 7, 1]
  together = small.generator(rows=4).answers(prompts, images, max_new_tokens=limits, **sampling)
  other_batches = small.generator(rows=2, bucket=64).answers(
    prompts, images, max_new_tokens=limits, expected=[6, 5, 4, 3, 2, 1], **sampling
  )
  assert together == other_batches
  alone = small.generator().answers(prompts[:1], images[:1], max_new_tokens=limits[:1], **sampling)
  assert alone == together[:1]


def test_the_answer_depends_on_the_picture_and_on_the_seed():
  generator, (first, second) = small.generator(), small.pictures(2)
  prompt = [('What is the color?', None)]
  answers = generator.answers([prompt, prompt, prompt], [first, second, first], max_new_tokens=8)
  assert answers[0] == answers[2] != answers[1]
  drawn = {
    generator.answers([prompt], [first], max_new_tokens=8, temperature=1.5, seed=seed)[0]
    for seed in range(4)
  }
  assert len(drawn) > 1


def scripted(monkeypatch, text, length=30):
  """A generator whose model says `text` and then EOS, whatever it is asked."""
  tokenizer = small.tokenizer()
  script = [*tokenizer.encode(text), tokenizer.eos]
  asked = dialog.Template('').prompt([('q', None)], tokenizer)
  table = jnp.array(([0] * (len(asked) - 1) + script + [0] * length)[:length])
  generator = decode.Generator(small.config(), {}, tokenizer, dialog.Template(''), rows=2, bucket=8)

  def apply(params, tokens, visual_index, positions, visual, cache, method):
    said = table[jnp.minimum(positions, length - 1)]
    return jnp.where(jnp.arange(320) == said[..., None], 1.0, 0.0), cache

  monkeypatch.setattr(generator, '_apply', apply)
  return generator


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
  generator = scripted(monkeypatch, 'red\n### Human: one two three')
  ids = generator._batch(
    [generator._row(generator.template.prompt([('q', None)], generator.tokenizer), False)],
    None,
    np.array([25]),
    np.array([0]),
    (0, 0.0, 1.0),
  )[0]
  assert generator.tokenizer.decode([int(i) for i in ids if i >= 0]) == 'red\n###'


def test_limits_cut_answers(monkeypatch):
  generator = scripted(monkeypatch, 'one two three')
  count = len(generator.tokenizer.encode('one'))
  assert generator.answers([[('q', None)]] * 2, max_new_tokens=[count, 20]) == [
    'one',
    'one two three',
  ]


def test_ids_that_the_tokenizer_lacks_are_never_said():
  config = small.config(vocab=400)
  params = jax.tree.map(
    lambda leaf: np.ones(leaf.shape, np.float32), sphinx.abstract_params(config)
  )
  generator = decode.Generator(config, params, small.tokenizer(), dialog.Template(''), bucket=16)
  ids = generator._batch(
    [generator._row(generator.template.prompt([('q', None)], generator.tokenizer), False)],
    None,
    np.array([40]),
    np.array([0]),
    (1, 5.0, 1.0),
  )
  assert 0 <= ids[ids >= 0].max() < small.tokenizer().vocab_size


def test_no_prompts_no_answers():
  assert small.generator().answers([]) == []


def test_a_prompt_without_room_for_an_answer_is_refused():
  with pytest.raises(errors.SphinxError, match='max_length=256'):
    small.generator().answers([[('one two three ' * 100, None)]])


def test_answers_are_cut_to_the_room_that_is_left():
  prompt = [('one two ' * 25, None)]
  generator = small.generator()
  room = 256 - len(generator.template.prompt(prompt, generator.tokenizer))
  assert 0 < room < 200
  assert isinstance(generator.answers([prompt], max_new_tokens=500)[0], str)


def test_a_model_with_fewer_tokens_than_its_tokenizer_is_refused():
  with pytest.raises(errors.SphinxError, match='320 tokens'):
    decode.Generator(small.config(vocab=300), {}, small.tokenizer(), dialog.Template())


def test_a_conversation_remembers_its_turns_and_its_picture():
  generator, picture = small.generator(), small.pictures(1)[0]
  talk = conversation.Conversation(generator, picture)
  first = talk.ask('red', max_new_tokens=5)
  second = talk.ask('blue', max_new_tokens=5)
  assert [first] == generator.answers([[('red', None)]], [picture], max_new_tokens=5)
  assert [second] == generator.answers(
    [[('red', first), ('blue', None)]], [picture], max_new_tokens=5
  )
  talk.forget()
  assert talk.ask('red', max_new_tokens=5) == first and talk.turns == [('red', first)]
