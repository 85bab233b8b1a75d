import threading

import jax
import numpy as np
import pytest

import sphinx_jax
from sphinx_jax.core import errors
from sphinx_jax.generate import load, running_batch
from sphinx_jax.serving import engine as engines
from sphinx_jax.serving.fair_queue import FairQueue
from tests.generate import small as tiny
from tests.models import idefics2_golden as golden
from tests.serving import small


def turns(question):
  return [(question, None)]


def test_answers_equal_those_of_the_model_alone_and_nothing_is_compiled(engine):
  """More requests than rows, of odd lengths and limits, with no, one or two images."""
  images = tiny.images(3)
  cases = [
    (question, pixels, limit)
    for question, limit in zip(tiny.QUESTIONS, (9, 3, 17, 5, 30, 1))
    for pixels in ([], images[:1], images[1:])
  ]
  marked = lambda question, pixels: '<image>' * (len(pixels) > 1) * len(pixels) + question
  expected = [
    small.model().answers([turns(marked(q, p))], [p], max_new_tokens=limit)[0]
    for q, p, limit in cases
  ]
  before = len(small.compiled)
  asked = [small.Asked(engine, turns(marked(q, p)), p, limit) for q, p, limit in cases]
  assert [one.wait() for one in asked] == expected
  assert small.compiled[before:] == []
  assert len(set(expected)) > 12  # Otherwise equality would prove little.
  ends = {(one.end, len(one.tokens) == case[2]) for one, case in zip(asked, cases)}
  assert ends <= {('length', True), ('stop', False), ('stop', True)}


def test_rows_sample_as_the_model_does_whatever_runs_beside_them(engine):
  asked = [
    small.Asked(engine, turns(tiny.QUESTIONS[0]), limit=12, seed=7, stream=i, **options)
    for i, options in enumerate(
      [{'temperature': 1.0}, {}, {'temperature': 2.0, 'top_p': 0.5}, {'temperature': 1.0}]
    )
  ]
  texts = [one.wait() for one in asked]
  model, same = small.model(), [turns(tiny.QUESTIONS[0])] * 4
  plain = model.answers(same, max_new_tokens=12, seed=7, temperature=1.0)
  narrow = model.answers(same, max_new_tokens=12, seed=7, temperature=2.0, top_p=0.5)
  greedy = model.answers(same[:1], max_new_tokens=12)
  assert texts == [plain[0], greedy[0], narrow[2], plain[3]]
  assert len(set(texts)) == 4


def test_a_cancelled_request_frees_its_row_and_the_next_answer_is_right(engine):
  running = [small.Asked(engine, turns(q), limit=150) for q in tiny.QUESTIONS[: small.ROWS]]
  for one in running:
    one.wait(tokens=2)
  waiting = small.Asked(engine, turns('yes'), limit=4)
  dropped = small.Asked(engine, turns('no'), limit=4)
  engine.cancel(dropped.request)
  for one in running:
    engine.cancel(one.request)
  (expected,) = small.model().answers([turns('yes')], max_new_tokens=4)
  assert waiting.wait() == expected
  assert dropped.arrived.empty() and engine.waiting == 0 and engine.running == 0


def test_the_next_turn_of_a_conversation_prefills_what_is_new(engine):
  (pixels,) = tiny.images(1)
  first = small.Asked(engine, turns(tiny.QUESTIONS[3]), [pixels], limit=6)
  answer = first.wait()
  before, encoded = engine.reused, engine.images.misses
  dialog = [(tiny.QUESTIONS[3], answer), ('one', None)]
  second = small.Asked(engine, dialog, [pixels], limit=9)
  assert second.wait() == small.model().answers([dialog], [pixels], max_new_tokens=9)[0]
  length = len(first.request.prompt.ids) + small.model().visual_tokens
  assert engine.reused - before >= length  # All of the first prompt, its image included.
  assert engine.images.misses == encoded


def test_another_image_at_the_same_place_is_not_taken_for_the_first(engine):
  first, second = tiny.images(2)
  asked = [small.Asked(engine, turns(tiny.QUESTIONS[3]), [pixels], 8) for pixels in (first, second)]
  alone = small.model().answers([turns(tiny.QUESTIONS[3])] * 2, [first, second], max_new_tokens=8)
  assert [one.wait() for one in asked] == alone and alone[0] != alone[1]


def test_log_probabilities_are_those_of_the_whole_forward_pass(engine):
  asked = small.Asked(engine, turns('red'), limit=5, logprobs=True)
  asked.wait()
  ids = [*asked.request.prompt.ids, *asked.tokens]
  logits = small.model().logits(np.array([ids]))[0, -len(asked.tokens) - 1 : -1]
  logits = np.where(small.model().ending.allowed, logits, -np.inf)
  logprobs = jax.nn.log_softmax(logits)
  for token, found, expected in zip(asked.tokens, asked.logprobs, logprobs):
    np.testing.assert_allclose(found.logprob, expected[token], atol=1e-4)
    best = np.argsort(-expected)[: running_batch.TOP]
    assert [i for i, _ in found.top] == best.tolist()
    np.testing.assert_allclose([value for _, value in found.top], expected[best], atol=1e-4)


def test_an_answer_ends_where_the_cache_does(engine):
  prompt = turns('red ' * 40)
  asked = small.Asked(engine, prompt, limit=10_000)
  room = engine.check(asked.request.prompt)
  (expected,) = small.model().answers([prompt], max_new_tokens=room)
  assert asked.wait() == expected
  with pytest.raises(errors.SphinxError, match='shorten the conversation'):
    engine.check(small.model().prompt_of(turns('red ' * 400), 0))


def test_a_request_that_fails_leaves_the_others_alone(engine, monkeypatch):
  (pixels,) = tiny.images(1)
  broken = engines.Image(b'another', None)  # Nothing to encode.
  encoded = small.model().prompt_of(turns('red'), 1)
  failed = []
  engine.submit(engines.Request(encoded, [broken], failed.append, 4))
  asked = small.Asked(engine, turns('red'), [pixels], 4)
  assert asked.wait() == small.model().answers([turns('red')], [pixels], max_new_tokens=4)[0]
  assert [progress.end for progress in failed] == ['error']


def test_the_engine_recovers_from_a_program_that_fails(engine, monkeypatch):
  def fail(*_):
    raise RuntimeError('RESOURCE_EXHAUSTED: as if')

  with monkeypatch.context() as patch:
    patch.setattr(engine.batch, 'advance', fail)
    asked = small.Asked(engine, turns('red'))
    asked.wait()
  assert asked.end == 'error' and 'RESOURCE_EXHAUSTED' in str(asked.error)
  again = small.Asked(engine, turns('red'), limit=4)
  assert again.wait() == small.model().answers([turns('red')], max_new_tokens=4)[0]


def test_a_stopped_engine_ends_its_requests():
  engine = engines.Engine(small.model(), small.ROWS, small.LENGTH)
  engine.start()
  asked = [small.Asked(engine, turns('red'), limit=150) for _ in range(6)]
  engine.stop()
  for one in asked:
    one.wait()
  assert {one.end for one in asked} <= {'error', 'stop'} and asked[-1].end == 'error'
  assert not engine.is_alive
  with pytest.raises(errors.SphinxError, match='stops'):
    small.Asked(engine, turns('red'))


@pytest.mark.parametrize('options', [{'mesh': 'serving'}, {'weights': 'int8'}, {'adapter': True}])
def test_models_on_a_mesh_quantized_or_with_an_adapter_answer_as_alone(options, tmp_path):
  if options.get('adapter'):
    base, adapter = tiny.save_base_and_adapter(tmp_path)
    options = {'adapter': adapter}
  else:
    base = tiny.save(tmp_path / 'base')
  model = load.load_model(base, **options)
  model.bucket = small.LENGTH  # One length of prompts, so that little is compiled.
  engine = engines.Engine(model, 2, small.LENGTH)
  engine.warm_up()
  engine.start()
  (pixels,) = tiny.images(1)
  dialogs = [turns(question) for question in tiny.QUESTIONS[:3]]
  before = len(small.compiled)
  asked = [small.Asked(engine, dialog, [pixels], 5) for dialog in dialogs]
  texts = [one.wait() for one in asked]
  assert small.compiled[before:] == []
  engine.stop()
  assert texts == model.answers(dialogs, [pixels] * 3, max_new_tokens=5)


def test_a_family_with_image_tokens_and_split_images_answers_as_alone():
  model = sphinx_jax.load(golden.FOLDER / 'model')
  model.slot_rule = type(model.slot_rule)(42, 98, split=True)
  model.bucket = 256
  engine = engines.Engine(model, 2, 256)
  engine.warm_up()
  engine.start()
  pixels = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
  images = [[], [pixels], [pixels[:50, :50], pixels[:, :60]]]
  dialogs = [turns(question) for question in ('red', 'one two', 'What is this?')]
  before = len(small.compiled)
  asked = [small.Asked(engine, dialog, each, 6) for dialog, each in zip(dialogs, images)]
  texts = [one.wait() for one in asked]
  assert small.compiled[before:] == []
  engine.stop()
  assert texts == [
    model.answers([dialog], [each], max_new_tokens=6)[0] for dialog, each in zip(dialogs, images)
  ]


def test_the_queue_gives_clients_their_turns():
  queue = FairQueue()
  for item in ('a1', 'a2', 'a3', 'b1', 'b2', 'c1'):
    queue.push(item[0], item)
  assert queue.discard('a', 'a2') and not queue.discard('a', 'a2')
  assert queue.discard('c', 'c1') and len(queue) == 4
  assert [queue.pop() for _ in range(4)] == ['a1', 'b1', 'a3', 'b2']
  with pytest.raises(KeyError):
    queue.pop()


def test_the_cache_of_images_keeps_those_used_last():
  cache = engines.VisualCache(limit=2 * 40)
  one = np.zeros(10, np.float32)
  for name in (b'a', b'b'):
    cache.put(name, one)
  assert cache.get(b'a') is one
  cache.put(b'c', one)
  cache.put(b'large', np.zeros(100, np.float32))
  assert [cache.get(name) is not None for name in (b'a', b'b', b'c', b'large')] == [1, 0, 1, 0]


def test_requests_of_many_threads_are_all_answered(engine):
  expected = {q: small.model().answers([turns(q)], max_new_tokens=5)[0] for q in tiny.QUESTIONS}
  wrong = []

  def ask(number):
    for i in range(5):
      question = tiny.QUESTIONS[(number + i) % len(tiny.QUESTIONS)]
      if small.Asked(engine, turns(question), limit=5).wait() != expected[question]:
        wrong.append(question)

  threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert wrong == []
