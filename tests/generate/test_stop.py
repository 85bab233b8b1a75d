import numpy as np
import pytest

from sphinx_jax.generate import stop
from tests.generate import small


@pytest.mark.parametrize('stop_text', ['\n###', 'aab', 'x'])
def test_the_automaton_finds_the_stop_text_in_any_tokenisation(stop_text):
  rng = np.random.default_rng(0)
  texts = [
    '',
    'a',
    'b',
    'aa',
    'ab',
    '\n',
    '#',
    '##',
    '###',
    '\n#',
    'x',
    'yx',
    'z\n',
    '#\n',
    '\n###a',
  ]
  table = stop.automaton(stop_text, texts)
  found = 0
  for _ in range(500):
    ids = rng.integers(len(texts), size=6)
    state = 0
    for i in ids:
      state = table[state, i]
    expected = stop_text in ''.join(texts[i] for i in ids)
    assert (state == len(stop_text)) == expected
    found += expected
  assert 0 < found < 500


def test_piece_texts_join_to_the_text_with_its_spaces():
  tokenizer = small.tokenizer()
  texts = stop.piece_texts(tokenizer, 330)
  ids = tokenizer.encode('red\n### Human: one two')
  assert ''.join(texts[i] for i in ids) == ' red\n### Human: one two'
  assert len(texts) == 330 and texts[325] == '' and texts[tokenizer.bos] == ''
