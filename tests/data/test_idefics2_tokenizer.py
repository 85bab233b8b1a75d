"""Ids and texts of Idefics2's tokenizer beside recorded ones (tests/golden/idefics2/chats.json)."""

import functools
import json

import numpy as np
import pytest

from sphinx_jax.core import errors
from sphinx_jax.data import added_tokens
from sphinx_jax.data.tokenizer import Tokenizer
from tests.models.idefics2_golden import FACTS, FOLDER

CHATS = json.loads((FOLDER / 'chats.json').read_text())
ADDED = {'<fake_token_around_image>': 512, '<image>': 513, '<end_of_utterance>': 514}


@functools.cache
def tokenizer(kind, ids='v4'):
  if kind == 'json':
    return Tokenizer((FOLDER / 'model' / 'tokenizer.json').read_bytes(), ids=ids)
  return Tokenizer((FOLDER / 'model' / 'tokenizer.model').read_bytes(), ADDED, ids)


@pytest.mark.parametrize('kind', ['json', 'pieces'])
@pytest.mark.parametrize('version', ['v4', 'v5'])
@pytest.mark.parametrize('number', range(len(CHATS)))
def test_ids_are_those_of_transformers(kind, version, number):
  chat = CHATS[number]
  for form in ('whole', 'split'):
    text = chat[f'expanded_{version}_{form}']
    ids = tokenizer(kind, version).encode(text, bos=True, parse_special=True)
    assert ids == chat[f'ids_{version}_{form}']


@pytest.mark.parametrize('kind', ['json', 'pieces'])
def test_a_space_at_the_beginning_is_part_of_the_first_token_of_transformers_5(kind):
  new, old = tokenizer(kind, 'v5'), tokenizer(kind)
  assert new.encode(' and') == old.encode('and') != old.encode(' and')
  assert new.encode('and') == old.encode('and') and len(new.encode(' ')) == 1
  ids, begins = new.encode_begins(' and  so')
  assert ids == old.encode('and  so') and begins.tolist()[0] == 0
  np.testing.assert_array_equal(begins[1:], old.encode_begins('and  so')[1][1:] + 1)
  with pytest.raises(errors.SphinxError, match="'v6'.*v4, v5"):
    tokenizer(kind, 'v6')


@pytest.mark.parametrize('kind', ['json', 'pieces'])
def test_special_tokens_in_a_text_are_text_unless_asked_for(kind):
  subject = tokenizer(kind)
  text = 'an <image> and </s> inside'
  ids = subject.encode(text)
  assert not set(ids) & set(subject.specials.values())
  assert subject.decode(ids) == text
  assert ADDED['<image>'] in subject.encode(text, parse_special=True)


@pytest.mark.parametrize('kind', ['json', 'pieces'])
def test_decoding_leaves_special_tokens_out(kind):
  for chat in CHATS:
    decoded = tokenizer(kind).decode(chat['ids_v5_whole'])
    assert decoded == chat['decoded_skipping_special']


def test_both_forms_have_the_same_numbers():
  for name in ('vocab_size', 'bos', 'eos', 'specials'):
    assert getattr(tokenizer('json'), name) == getattr(tokenizer('pieces'), name)
  assert tokenizer('json').vocab_size == FACTS['vocab'] == 515


@pytest.mark.parametrize('text', ['A cat.', 'Wie heißt das? 北京 🙂', '  two  spaces\n\nand\t', ''])
def test_both_forms_find_the_same_beginnings_of_tokens(text):
  """Of a character of several bytes, sentencepiece counts some tokens to the one before."""
  ids, begins = tokenizer('json').encode_begins(text)
  other_ids, other_begins = tokenizer('pieces').encode_begins(text)
  assert ids == other_ids
  if text.isascii():
    np.testing.assert_array_equal(begins, other_begins)


@pytest.mark.parametrize('kind', ['json', 'pieces'])
def test_an_added_token_is_one_id_wherever_a_text_has_it(kind):
  old = tokenizer(kind)
  new = added_tokens.add(old, ('<loc_0>', '<loc_1>'))
  assert (new.specials, new.vocab_size) == (old.specials, 517)
  assert [new.pieces()[i] for i in (515, 516)] == ['<loc_0>', '<loc_1>']
  for text in ('<loc_1>', 'at <loc_0><loc_1> end', 'a<loc_1>b.\n<loc_0>', 'no <loc_2>, <image>'):
    ids, begins = new.encode_begins(text)
    assert ids == new.encode(text) and new.decode(ids) == text
    for i, token in ((515, '<loc_0>'), (516, '<loc_1>')):
      assert [begin for begin, id_ in zip(begins, ids) if id_ == i] == (
        [text.index(token)] if token in text else []
      )
  text = 'Wie heißt das?'
  assert new.encode(text) == old.encode(text)
  assert new.encode('a <image>', parse_special=True) == old.encode('a <image>', parse_special=True)
  assert added_tokens.add(old, ('<loc_0>', '<loc_1>')).model_bytes == new.model_bytes
  assert added_tokens.add(new, ('<loc_2>',)).pieces()[517] == '<loc_2>'


def test_a_file_that_is_no_tokenizer_is_refused():
  for contents, words in ((b'{"a": 1}', 'tokenizer.json'), (b'\x00', 'tokenizer.model')):
    with pytest.raises(errors.SphinxError, match=words):
      Tokenizer(contents)
  with pytest.raises(errors.SphinxError, match='ids from 512 on'):
    Tokenizer((FOLDER / 'model' / 'tokenizer.model').read_bytes(), {'<image>': 7})
