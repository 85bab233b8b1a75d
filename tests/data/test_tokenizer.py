"""Tokenizer: golden cases of the official wrapper, and models trained here."""

import io
import json
import random
from pathlib import Path

import pytest
import sentencepiece

from sphinx_jax.core import coordinates
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import dialog, tokenizer as tokenizers

GOLDEN = Path(__file__).parents[1] / 'golden'


@pytest.fixture(scope='module')
def official():
  return tokenizers.load(GOLDEN / 'tokenizer.model')


def _corpus(count=1500):
  draw = random.Random(0)
  words = 'What colour is the small big red blue circle square tree near left of house'.split()
  for _ in range(count):
    box = coordinates.format_box([draw.random() for _ in range(4)])
    question = ' '.join(draw.choice(words) for _ in range(5))
    answer = draw.choice([box, 'red', f'<p>tree</p>{box}'])
    yield f'### Human: {question}?\n### Assistant: {answer}\n###'


@pytest.fixture(scope='module')
def trained():
  return tokenizers.Tokenizer(tokenizers.train(_corpus(), 400))


def test_equals_the_official_tokenizer(official):
  golden = json.loads((GOLDEN / 'conversation/prompts_tokenizer.json').read_text())['tokenizer']
  assert (official.vocab_size, official.bos, official.eos) == (
    golden['n_words'],
    golden['bos'],
    golden['eos'],
  )
  for case in golden['cases']:
    assert official.encode(case['s']) == case['encode']
    assert official.encode(case['s'], bos=True) == case['bos_eos'][:-1]
  for case in golden['decode']:
    assert official.decode(case['ids']) == case['text']


def test_special_tokens_that_a_dialog_needs_come_behind_the_ids(official):
  tokens = dialog.Template(style='idefics2').special_tokens
  assert tokens == ('<fake_token_around_image>', '<image>', '<end_of_utterance>')
  extended = official.with_specials(tokens)
  first = official.vocab_size
  assert extended.added == dict(zip(tokens, range(first, first + 3)))
  assert extended.with_specials(tokens).added == extended.added
  assert extended.encode('a <image>') == official.encode('a <image>')  # Text, unless asked for.
  assert first + 1 in extended.encode('a <image>', parse_special=True)
  assert official.with_specials(dialog.Template().special_tokens).added == {}
  newer = tokenizers.Tokenizer(official.model_bytes, ids='v5')
  assert newer.with_specials(tokens).ids == 'v5'


@pytest.mark.parametrize(
  'text', ['', 'a', ' my darling', 'a\n### Human: café 图 😀!', '[0.25, 0.31]']
)
def test_spans_are_characters_in_order_and_cover_the_text(official, text):
  ids, spans = tokenizers.PieceModel(official.model_bytes).encode_spans(text)
  assert ids == official.encode(text)
  assert [begin for begin, _ in spans] == sorted(begin for begin, _ in spans)
  assert ''.join(text[begin:end] for begin, end in spans) == text


@pytest.mark.parametrize(
  'text',
  ['', 'a', ' my  darling ', '\n###', 'a\n### Human: café 图 😀!', '[0.25, 0.31]; [0.1]\t~\x00'],
)
@pytest.mark.parametrize('which', ['official', 'trained'])
def test_begins_equal_those_of_the_spans(which, text, request):
  tokenizer = request.getfixturevalue(which)
  ids, begins = tokenizer.encode_begins(text)
  want, spans = tokenizers.PieceModel(tokenizer.model_bytes).encode_spans(text)
  assert ids == want and begins.tolist() == [begin for begin, _ in spans]


def test_trained_model_has_the_official_special_ids(trained):
  assert (trained.vocab_size, trained.bos, trained.eos) == (400, 1, 2)


@pytest.mark.parametrize(
  'text, tokens',
  [
    ('[0.25, 0.31, 0.50, 0.62]', 13),
    ('[0.25, 0.31, 0.50, 0.62; 0.00, 0.99, 0.10, 0.01]', 25),
  ],
)
def test_coordinates_are_short(trained, text, tokens):
  assert len(trained.encode(text)) == tokens
  assert trained.decode(trained.encode(text)) == text


def test_without_user_symbols_coordinates_are_long():
  plain = tokenizers.Tokenizer(tokenizers.train(_corpus(200), 340, user_symbols=()))
  assert len(plain.encode('[0.25, 0.31, 0.50, 0.62]')) > 20


def test_decode_restores_every_text(trained):
  draw = random.Random(1)
  texts = [
    *_corpus(30),
    'unseen: Ünïcödé 图 ✓\n\ttab',
    '<p>red circle</p>[0.10, 0.20, 0.30, 0.40], nose [0.50, 0.20]',
    '  two  spaces ',
    *(''.join(draw.choice('ab 01[],.;#\n') for _ in range(20)) for _ in range(50)),
  ]
  for text in texts:
    assert trained.decode(trained.encode(text)) == text


def test_training_is_deterministic(trained):
  assert tokenizers.train(_corpus(), 400) == trained.model_bytes


@pytest.mark.parametrize('lines, size', [(['few words'], 30000), ([], 400), (['a b c'], 100)])
def test_training_refuses_impossible_vocabularies(lines, size):
  with pytest.raises(SphinxError, match=f'tokenizer training: got vocab_size={size}'):
    tokenizers.train(lines, size)


def test_a_control_token_before_the_pieces_cuts_no_text():
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_corpus()),
    model_writer=model,
    vocab_size=100,
    pad_id=3,
    control_symbols=['<sep>'],
    minloglevel=2,
  )
  padded = tokenizers.Tokenizer(model.getvalue())
  assert padded.words == {} and len(padded.encode('red circle')) > 1


def test_refuses_files_that_are_not_a_model(tmp_path):
  with pytest.raises(SphinxError, match='no file'):
    tokenizers.load(tmp_path / 'none.model')
  (tmp_path / 'bad.model').write_bytes(b'nonsense')
  with pytest.raises(SphinxError, match='8 bytes that do not load'):
    tokenizers.load(tmp_path / 'bad.model')
  (tmp_path / 'bad.model').write_bytes(b'')
  with pytest.raises(SphinxError, match='0 bytes that do not load .an empty file'):
    tokenizers.load(tmp_path / 'bad.model')


def test_a_model_without_bos_is_refused():
  model = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(_corpus()), model_writer=model, vocab_size=100, bos_id=-1, minloglevel=2
  )
  with pytest.raises(SphinxError, match='no BOS or no EOS'):
    tokenizers.Tokenizer(model.getvalue())
