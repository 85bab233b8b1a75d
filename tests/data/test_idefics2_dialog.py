"""Idefics2's dialogs beside those of transformers (tests/golden/idefics2/chats.json)."""

import numpy as np
import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.dialog import Template
from tests.data.test_idefics2_tokenizer import ADDED, CHATS, tokenizer
from tests.models.idefics2_golden import IMAGE

FAKE, END = ADDED['<fake_token_around_image>'], ADDED['<end_of_utterance>']
LATENTS = 4


def turns_of(messages):
  """The system prompt, and (question, answer) pairs with `<image>` for images."""
  system, turns = '', []
  for message in messages:
    text = ''.join(part.get('text', '<image>') for part in message['content'])
    if message['role'] == 'system':
      system = text
    elif message['role'] == 'user':
      turns.append((text, None))
    else:
      turns[-1] = (turns[-1][0], text)
  return system, turns


def expanded(encoded):
  """The ids with the marks of all visual tokens, as transformers writes them."""
  ids = list(encoded.ids)
  for at in reversed(encoded.images_at):
    ids[at:at] = [IMAGE] * LATENTS
  return ids


# Left out: in transformers, content that is no list renders as nothing, and special tokens in a
# text are tokens.
DIALOGS = [
  chat
  for chat in CHATS
  if chat.get('messages') and chat['name'] not in ('string_content', 'special_text')
]


@pytest.mark.parametrize('chat', DIALOGS, ids=lambda chat: chat['name'])
@pytest.mark.parametrize('version', ['v4', 'v5'])
def test_texts_and_ids_are_those_of_transformers(chat, version):
  system, turns = turns_of(chat['messages'])
  template, count = Template(system, 'idefics2'), chat['number_of_images']
  if turns[-1][1] is None:
    assert template.render(turns, open_ended=True) == chat['rendered_with_generation_prompt']
    for slots, form in ((1, 'whole'), (5, 'split')):
      encoded = template.prompt(turns, tokenizer('pieces', version), [slots] * count)
      assert expanded(encoded) == chat[f'ids_{version}_{form}']
  else:
    assert template.render(turns) == chat['rendered']


@pytest.mark.parametrize(
  'chat', [c for c in CHATS if c['name'] == 'raw'], ids=lambda c: c['prompt']
)
@pytest.mark.parametrize('kind', ['json', 'pieces'])
@pytest.mark.parametrize('version', ['v4', 'v5'])
def test_texts_for_the_base_model_are_those_of_transformers(chat, kind, version):
  for slots, form in ((1, 'whole'), (5, 'split')):
    encoded = Template(style='idefics2_base').continuation(
      chat['prompt'], tokenizer(kind, version), [slots] * chat['number_of_images']
    )
    assert expanded(encoded) == chat[f'ids_{version}_{form}']


def test_labels_are_the_answers_and_their_end_mark():
  turns = [('<image>How many?', 'Three.'), ('And <image>?', 'No <image>s')]
  turns = [turns[0], ('And <image>?', 'None.')]
  ids, weights, images_at = Template(style='idefics2').encode(turns, tokenizer('pieces'), [1, 2])
  pieces = tokenizer('pieces')
  trained = [i for i, weight in zip(ids, weights) if weight]
  assert trained == [
    *pieces.encode('\nAssistant: Three.')[len(pieces.encode('\nAssistant:')) :],
    END,
    *pieces.encode('\nAssistant: None.')[len(pieces.encode('\nAssistant:')) :],
    END,
  ]
  assert [ids[at - 1] for at in images_at] == [FAKE] * 3
  assert ids[:1] == [1] and ids[-1] == 2 and weights.dtype == np.float32


def test_adjacent_images_share_a_mark_and_others_do_not():
  prompt = Template(style='idefics2').prompt(
    [('<image><image>a<image>', None)], tokenizer('json'), [1, 1, 1]
  )
  assert prompt.ids.count(FAKE) == 5


def test_images_without_a_mark_stand_in_front():
  with_marks = Template(style='idefics2').prompt([('<image>What?', None)], tokenizer('json'), [5])
  without = Template(style='idefics2').prompt([('What?', None)], tokenizer('json'), [5])
  assert with_marks.ids == without.ids and with_marks.images_at == without.images_at


def test_a_prompt_is_what_training_saw_before_the_answer():
  turns = [('<image>What?', 'A dog.'), ('Where?', 'Here.')]
  template = Template(style='idefics2')
  ids, weights, _ = template.encode(turns, tokenizer('json'), [1])
  last = np.flatnonzero(np.diff(weights) > 0)[-1] + 1
  assert ids[:last] == template.prompt([turns[0], ('Where?', None)], tokenizer('json'), [1]).ids


@pytest.mark.parametrize(
  'slots, question', [([1], 'a <image> and <image>'), ([1, 1], 'one <image>'), ([], 'see <image>')]
)
def test_marks_that_disagree_with_the_images_are_refused(slots, question):
  marks = question.count('<image>')
  with pytest.raises(SphinxError, match=f'{len(slots)} images and {marks} <image> marks'):
    Template(style='idefics2').prompt([(question, None)], tokenizer('json'), slots)


def test_a_tokenizer_without_the_end_mark_is_refused():
  from sphinx_jax.data.tokenizer import Tokenizer

  base = Tokenizer(
    tokenizer('pieces').model_bytes, {'<fake_token_around_image>': 512, '<image>': 513}
  )
  with pytest.raises(SphinxError, match='<end_of_utterance>, which the tokenizer does not have'):
    Template(style='idefics2').prompt([('Hi', None)], base)
  assert Template(style='idefics2_base').prompt([('Hi', None)], base).ids


def test_sphinx_places_several_images_at_their_marks():
  """A single image stands behind BOS, whatever the marks say."""
  template = Template('')
  one = template.prompt([('What is <image>?', None)], tokenizer('pieces'), [1])
  assert one.images_at == (1,)
  assert one.ids == template.prompt([('What is <image>?', None)], tokenizer('pieces')).ids
  two = template.prompt([('Is <image> like <image>?', None)], tokenizer('pieces'), [1, 1])
  pieces = tokenizer('pieces')
  assert two.ids == [
    1,
    *pieces.encode('### Human: Is '),
    *pieces.encode(' like '),
    *pieces.encode('?\n### Assistant:'),
  ]
  assert two.images_at == (
    1 + len(pieces.encode('### Human: Is ')),
    1 + len(pieces.encode('### Human: Is ')) + len(pieces.encode(' like ')),
  )
