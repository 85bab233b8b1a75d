import numpy as np
import pytest

from sphinx_jax.data import dialog, tokenizer as tokenizers
from sphinx_jax.generate.text_stream import TextStream
from tests.generate import small

TEXTS = [
  'What is the color of the shape?',
  'naïve 日本語 😀 Привет  two  spaces\n\ttab ',
  '  red circle   ',
  'a\n##b ### c\n### not shown',
  'é' * 9 + '\n###',
  '',
]


def stream(stops=()):
  return TextStream(small.tokenizer(), dialog.Template(''), stops)


def pieces(ids, sizes, stops=()):
  """Pieces of tokens that come in groups of these sizes, one after the other."""
  one, found, at = stream(stops), [], 0
  for size in sizes:
    found.append(one.push(ids[at : at + size]))
    at += size
  return [*found, one.finish()]


def whole(ids, stops=()):
  """The reference: the text of all tokens, cut at the stop text that is complete first."""
  text = small.tokenizer().decode(ids)
  for end in range(len(text) + 1):
    found = [stop for stop in ('\n###', *stops) if text[:end].endswith(stop)]
    if found:
      return text[: end - max(map(len, found))].strip()
  return text.strip()


@pytest.mark.parametrize('size', [1, 2, 3, 100])
@pytest.mark.parametrize('text', TEXTS)
def test_pieces_are_together_the_text_of_all_tokens(text, size):
  ids = small.tokenizer().encode(text)
  found = pieces(ids, [size] * -(-len(ids) // size))
  assert ''.join(found) == whole(ids)
  assert '\ufffd' not in ''.join(found)


def test_random_tokens_and_stops_give_the_same_text_however_they_come():
  rng = np.random.default_rng(0)
  for _ in range(300):
    ids = rng.integers(3, small.tokenizer().vocab_size, rng.integers(0, 40)).tolist()
    stops = [s for s in ('e', 'the c', '\n', 'ab', 'b') if rng.random() < 0.3]
    sizes = rng.integers(0, 6, 40)
    assert ''.join(pieces(ids, sizes, stops)) == whole(ids[: sizes.sum()], stops)


def test_a_stop_text_is_held_back_until_it_is_clear_that_it_is_none():
  one, tokenizer = stream(['circle now']), small.tokenizer()
  assert one.push(tokenizer.encode('red circle')) == 'red'
  assert one.push(tokenizer.encode('no')) == ''
  assert one.push(tokenizer.encode('red')) == ' circle no red' and not one.is_stopped
  assert one.push(tokenizer.encode('circle now, more')) == '' and one.is_stopped
  assert one.push(tokenizer.encode('later')) == one.finish() == ''
  assert one.text.startswith('red circle')


def test_tokens_behind_a_stop_text_are_not_counted():
  ids = small.tokenizer().encode('red circle, blue square and more')
  counts = set()
  for size in (1, 2, 5, 100):
    one = stream(['circle, b'])
    for begin in range(0, len(ids), size):
      one.push(ids[begin : begin + size])
    counts.add((one.count, one.finish(), one.text))
  ((count, _, text),) = counts
  assert text == 'red' and 'circle, b' in small.tokenizer().decode(ids[:count])
  assert 'circle, b' not in small.tokenizer().decode(ids[: count - 1])


def test_an_end_token_ends_the_text():
  tokenizer = small.tokenizer()
  one = stream()
  first = one.push([*tokenizer.encode('red'), tokenizer.eos, *tokenizer.encode('blue')])
  assert first == 'red' and one.is_stopped and one.finish() == ''
  assert one.count == len(tokenizer.encode('red')) + 1


def test_a_word_token_between_texts_keeps_the_spaces_around_it():
  """Added tokens without special meaning cut a text into stretches, each with a space in front."""
  import json

  from tokenizers import Tokenizer, decoders, models, normalizers

  vocab = {piece: i for i, piece in enumerate(['<unk>', '<s>', '</s>', '▁', '▁red', 'red', '▁a'])}
  library = Tokenizer(models.BPE(vocab, [], unk_token='<unk>'))
  library.normalizer = normalizers.Sequence(
    [normalizers.Prepend('▁'), normalizers.Replace(' ', '▁')]
  )
  library.decoder = decoders.Sequence(
    [decoders.Replace('▁', ' '), decoders.Fuse(), decoders.Strip(' ', 1, 0)]
  )
  library.add_special_tokens(['<s>', '</s>'])
  library.add_tokens(['<w>'])
  tokenizer = tokenizers.Tokenizer(json.dumps(json.loads(library.to_str())).encode())
  word = tokenizer.words['<w>']
  for ids in ([4, 3, word, 4, 3, 4, 5, word, word, 6], [3, 3, 4, word, 3, 4], [word, 4, 4]):
    one = TextStream(tokenizer, dialog.Template(''))
    found = [one.push([i]) for i in ids]
    assert ''.join([*found, one.finish()]) == tokenizer.decode(ids).strip()
