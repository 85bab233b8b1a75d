"""Reading of choices, of yes and no, and of numbers: tables, and seeded wrappers around them."""

import random
import time

import pytest

from sphinx_jax.core import answers
from sphinx_jax.evaluation.protocols import box_forms

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
  "The answer is '{}'.",
  "{{'answer': '{}'}}",
  'My choice is {low}.',
  'The correct option is {}, because E is wrong',
  "So it's {low}",
  'E is wrong, so {}',
  '{} rather than E',
  '{}.\nThe other one (E) is not visible.',
  '<s>{}</s>',
  '{} because it fits',
]
WRAPPERS = [
  '{}',
  '**{}**',
  '`{}`',
  '  {}\n',
  '"{}"',
  '<think>A or B? No.</think>{}',
  'A or B? No.\n</think>\n\n{}',
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
  + ['(A) or (B)', 'A: cat\nB: dog\nC: cow', 'cat or dog', 'A cat or a dog', '', 'none', 'E']
  + [
    'A; C',
    'A\nB',
    'A. B.',
    '(A)(B)',
    'A vs B',
    '<think>So it is B',
    '<answer></answer>',
    '\\boxed{}',
  ],
)
def test_an_answer_that_names_none_or_several_choices_names_none(text):
  assert answers.choice(text, CHOICES) is None


@pytest.mark.parametrize(
  'text, letter',
  [('11', 'B'), ('It is 11', 'B'), ('The number is 12.', 'C'), ('111', None), ('2.5', None)]
  + [('-1', None), ('−1', None), ('minus 1', None), ('1', 'A'), ('11 apples', 'B')],
)
def test_a_number_inside_another_number_is_no_choice(text, letter):
  assert answers.choice(text, {'A': '1', 'B': '11', 'C': '12', 'D': '2'}) == letter


def test_the_text_of_a_choice_names_it():
  for text, letter in [
    *(('black cat', 'D'), ('It is a black cat.', 'D'), ('**cow**', 'C'), ('The dog.', 'B')),
    *(('A dog', 'B'), ('cats', 'A'), ('The answer is cow.', 'C'), ('not A, so B', 'B')),
    *(('It shows a dog, not a cat.', 'B'), ('It is a black cat, not just a cat.', 'D')),
    *(
      ('Option A: cat, wrong. Option B: dog, correct. So B.', 'B'),
      ('A is not correct; B is.', 'B'),
    ),
    *(('The answer is B, C is wrong', 'B'), ('It is not a cat.', None)),
    *(('It matches option (B), not option (A).', 'B'), ('not (A) but (B)', 'B')),
  ]:
    assert answers.choice(text, CHOICES) == letter
  vitamins = {'A': 'vitamin C', 'B': 'vitamin D', 'C': 'iron'}
  assert answers.choice('It is vitamin C.', vitamins) == 'A'
  assert answers.choice('The answer is C', vitamins) == 'C'
  powers = {'A': 'x^2', 'B': 'x^2 + 1'}
  assert answers.choice('x^2+1', powers) == answers.choice('It is x^2+1', powers) == 'B'
  words = {'A': 'Yes', 'B': 'No'}
  assert answers.choice('Yes, there is no doubt', words) == 'A'
  assert answers.choice('No, A is not right', words) == 'B'


@pytest.mark.parametrize(
  'text', ['(', '[', 'A, ', 'A\n', 'cat ', '<think>', 'so it is ', 'not the ', '"']
)
def test_a_long_answer_is_read_in_time(text):
  begin = time.perf_counter()
  answers.choice(text * 5000, CHOICES), answers.either(text * 5000), answers.numbers(text * 5000)
  box_forms.first_box(text * 5000, 6, 4)
  assert time.perf_counter() - begin < 10


@pytest.mark.parametrize(
  'text, word',
  [('Yes', 'yes'), ('**No**', 'no'), ('no.', 'no'), ('NO', 'no'), ('There is no dog.', 'no')]
  + [('Yes, there is no doubt', 'yes'), ('No, yes is wrong', 'no'), ('Answer: **Yes**', 'yes')]
  + [('The answer is no.', 'no'), ('y', 'yes'), ('\\boxed{no}', 'no'), ('I know', None)]
  + [('no idea', None), ('I have no clue.', None), ('Not yes, but no.', 'no'), ('not yes', None)]
  + [('Nope.', 'no'), ('Yeah', 'yes'), ('“No”', 'no'), ('No? Let me see.</think>Yes', 'yes')]
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
