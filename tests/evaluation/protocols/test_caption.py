"""CIDEr-D and BLEU give the numbers of pycocoevalcap, and nearly the words of its tokenizer."""

import json
import pathlib

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS, caption

GOLDEN = json.loads((pathlib.Path(__file__).parents[2] / 'golden/eval/caption.json').read_text())
# Rare forms that our approximation tokenizes differently.
DIFFERENT = {
  "rock'n'roll band": ["rock'n'roll", 'band'],
  'email a@b.com': ['email', 'a', '@', 'b', 'com'],
}


def entries(pairs):
  return [{'answer': answer, 'gt_answers': truths} for answer, truths in pairs]


@pytest.mark.parametrize('text, words', GOLDEN['tokens']['cases'], ids=lambda case: repr(case))
def test_words_are_those_of_the_official_tokenizer(text, words):
  assert caption.tokens(text) == DIFFERENT.get(text, words)


def test_numbers_are_those_of_the_coco_caption_evaluation():
  answers, references = zip(*((item['answer'], item['references']) for item in GOLDEN['items']))
  assert caption.bleu(answers, references) == pytest.approx(GOLDEN['BLEU'], abs=1e-8)
  scores = caption.cider(answers, references)
  assert scores == pytest.approx(GOLDEN['CIDEr each'], abs=1e-8)
  assert sum(scores) / len(scores) == pytest.approx(GOLDEN['CIDEr'], abs=1e-8)


def test_identical_words_score_perfectly_and_other_words_score_zero():
  truths = [['A man rides a wave.'], ['Two dogs sit on grass.'], ['The red bus stops here.']]
  perfect = PROTOCOLS['caption'](entries((truth[0].upper(), truth) for truth in truths))
  assert perfect == pytest.approx({'CIDEr': 10, 'BLEU-1': 1, 'BLEU-2': 1, 'BLEU-3': 1, 'BLEU-4': 1})
  assert set(
    PROTOCOLS['caption'](entries(('pizza kitchen', truth) for truth in truths)).values()
  ) == {0}
  assert set(PROTOCOLS['caption'](entries(('', truth) for truth in truths)).values()) == {0}


def test_the_score_of_a_caption_is_a_tenth_of_its_cider():
  lines = entries(
    [('a man rides a wave', ['a man rides a wave']), ('a cat', ['two dogs sit on grass'])]
  )
  assert PER_EXAMPLE['caption'](lines) == pytest.approx([1, 0])


def test_bleu_by_hand():
  # 3 of 4 words match (the second 'the' does not), and the nearest reference is a word longer.
  words, truths = 'the cat the sat'.split(), [['the', 'cat', 'sat', 'down', 'here']]
  assert caption.bleu([words], [truths])[0] == pytest.approx(
    3 / 4 * 2.718281828459045 ** (1 - 5 / 4)
  )


def test_no_true_caption_is_an_error():
  with pytest.raises(SphinxError, match='no true answer'):
    PROTOCOLS['caption'](entries([('a man', [])]))
