"""Reading of choices, of yes and no, and of numbers: tables, and seeded wrappers around them."""

import random

import pytest

from sphinx_jax.core import answers

CHOICES = {'A': 'cat', 'B': 'dog', 'C': 'cow', 'D': 'black cat'}
# '{}' stands for a capital letter, '{low}' for a small one, '{text}' for the text of the choice.
NAMINGS = [
  '{}',
  '{low}',
  '({})',
  '({low})',
  '[{}]',
  '{}.',
  '{})',
  '{}: {text}',
  '{}) {text}',
  '{}. {text}',
  '({}) {text}',
  '{} - {text}',
  'The answer is {}.',
  'The answer is **{}**.',
  'the answer is {low}',
  'Answer: {}',
  '**Answer:** {}',
  'Answer: ({low})',
  'The answer is {} because it fits.',
  'The correct option is {}.',
  'Option {}',
  'option ({low})',
  'Choice {}',
  'I choose {}.',
  'I would go with {}.',
  '{} is correct.',
  '{} is the best answer.',
  'The best answer is {}',
  "It's {}",
  'Final answer: {}',
  '{}, because it fits',
  'Based on the image, the answer is ({}).',
  '答案：{}',
  '（{}）',
  '<b>{}</b>',
  'The answer is: {}. {text}',
  'Answer: Option {}',
  'I think it is {}',
  '{} because it fits',
]
WRAPPERS = [
  '{}',
  '**{}**',
  '`{}`',
  '  {}\n',
  '"{}"',
  '<think>A or B? No.</think>{}',
  '{}\n\nIt fits.',
]
LATEX = ['\\boxed{{{}}}', '$\\boxed{{\\text{{{}}}}}$', '\\({}\\)', '<answer>{}</answer>']


def answers_with(count):
  """Yields (answer, letter it names), seeded."""
  rng = random.Random(7)
  for _ in range(count):
    letter = rng.choice('ABCD')
    if rng.random() < 0.2:
      text = rng.choice(LATEX).format(letter)
    else:
      naming = rng.choice(NAMINGS)
      text = naming.format(letter, low=letter.lower(), text=CHOICES[letter])
      text = rng.choice(WRAPPERS).replace('{}', text)
    yield text, letter


@pytest.mark.parametrize('count', [300, pytest.param(5000, marks=pytest.mark.slow)])
def test_any_wrapper_around_a_letter_names_it_and_no_other(count):
  for text, letter in answers_with(count):
    assert answers.choice(text, CHOICES) == letter, text
    assert answers.choice(text) == letter, text


@pytest.mark.parametrize('naming', NAMINGS)
def test_every_way_of_naming_is_read(naming):
  for letter in 'ABCD':
    text = naming.format(letter, low=letter.lower(), text=CHOICES[letter])
    assert answers.choice(text, CHOICES) == answers.choice(text) == letter


@pytest.mark.parametrize(
  'text',
  ['A or B', 'A and B', 'A, B', 'Both A and C', 'B/C', 'The answer is B or C.', 'Answer: B, C']
  + ['(A) or (B)', 'A: cat\nB: dog\nC: cow', 'cat or dog', 'A cat or a dog', '', 'none', 'E'],
)
def test_an_answer_that_names_none_or_several_choices_names_none(text):
  assert answers.choice(text, CHOICES) is None


@pytest.mark.parametrize(
  'text, letter',
  [('11', 'B'), ('It is 11', 'B'), ('The number is 12.', 'C'), ('111', None), ('2.5', None)]
  + [('-1', None), ('1', 'A'), ('11 apples', 'B')],
)
def test_a_number_inside_another_number_is_no_choice(text, letter):
  assert answers.choice(text, {'A': '1', 'B': '11', 'C': '12', 'D': '2'}) == letter


def test_the_text_of_a_choice_names_it():
  for text, letter in [
    *(('black cat', 'D'), ('It is a black cat.', 'D'), ('**cow**', 'C'), ('The dog.', 'B')),
    *(('A dog', 'B'), ('cats', 'A'), ('The answer is cow.', 'C'), ('not A, so B', 'B')),
  ]:
    assert answers.choice(text, CHOICES) == letter
  vitamins = {'A': 'vitamin C', 'B': 'vitamin D', 'C': 'iron'}
  assert answers.choice('It is vitamin C.', vitamins) == 'A'
  assert answers.choice('The answer is C', vitamins) == 'C'


@pytest.mark.parametrize(
  'text, word',
  [('Yes', 'yes'), ('**No**', 'no'), ('no.', 'no'), ('NO', 'no'), ('There is no dog.', 'no')]
  + [('Yes, there is no doubt', 'yes'), ('No, yes is wrong', 'no'), ('Answer: **Yes**', 'yes')]
  + [('The answer is no.', 'no'), ('y', 'yes'), ('\\boxed{no}', 'no'), ('I know', None)]
  + [('yes or no', None), ('Yes/No', None), ('', None), ('maybe', None)],
)
def test_yes_and_no_are_read_from_sentences(text, word):
  assert answers.either(text) == word


def test_the_readers_take_any_text():
  rng = random.Random(3)
  alphabet = 'AaBbyesno 01.,%$*_`\\{}[]()<>:"\'\n\u202e\ud800é答'
  for _ in range(300):
    text = ''.join(rng.choices(alphabet, k=rng.randrange(40)))
    assert answers.choice(text, CHOICES) in (*CHOICES, None)
    assert answers.either(text) in ('yes', 'no', None)
    assert all(number == number for number in answers.numbers(text))
    assert text in answers.forms(text)
