"""Questions of datasets: wording, choices, answers of many annotators, lines of official files."""

import json
import pathlib
import re
import string

import numpy as np
import pytest

from sphinx_jax.data.record import BadExample
from sphinx_jax.tasks import TASKS, questions

OFFICIAL = pathlib.Path(__file__).parents[1] / 'golden' / 'annotations'
ANSWERS = ['cup', 'A cup.', 'cup', 'mug', 'mug', 'glass', 'pot', 'vase', 'jar', 'bowl']


def asked(number, **more):
  return {'id': f'q{number}', 'question': f'What is {number}?', 'answer': f'thing {number}', **more}


def ask(entries, max_turns=4, seed=0, task='vqa'):
  return TASKS[task].turns({'questions': entries}, np.random.default_rng(seed), max_turns)


@pytest.mark.parametrize('task', ['vqa', 'ocr'])
def test_questions_come_in_order_and_only_the_first_carries_the_wording(task):
  wordings = set()
  for seed in range(40):
    turns = ask([asked(i) for i in range(6)], seed=seed, task=task)
    assert [turn.answer for turn in turns] == [f'thing {i}' for i in range(4)]
    assert [turn.instruction for turn in turns[1:]] == ['What is 1?', 'What is 2?', 'What is 3?']
    assert [turn.truth['id'] for turn in turns] == ['q0', 'q1', 'q2', 'q3']
    wordings.add(turns[0].instruction)
  assert wordings == {wording.format('What is 0?') for wording in TASKS[task].instructions}


def test_an_instruction_of_its_own_stays_with_its_question():
  own = "{} When {x}, say 'Unanswerable'."
  first, second, third = ask([asked(0, instruction=own), asked(1), asked(2)])
  assert first.instruction == "What is 0? When {x}, say 'Unanswerable'."
  assert second.instruction in {
    wording.format('What is 1?') for wording in TASKS['vqa'].instructions
  }
  assert third.instruction == 'What is 2?'


def test_choices_are_listed_with_letters_and_always_carry_the_wording():
  entries = [asked(i, answer='B', choices=['a cup', '{} hats'], context='Look.') for i in range(2)]
  body = 'Context:\nLook.\nQuestion:\nWhat is {}?\nChoices:\nA. a cup\nB. {{}} hats'
  endings = set()
  for seed in range(40):
    for i, turn in enumerate(ask(entries, seed=seed)):
      assert turn.instruction.startswith(body.format(i) + '\n') and turn.answer == 'B'
      assert turn.truth == {'answer': 'B', 'id': f'q{i}', 'choices': ['a cup', '{} hats']}
      endings.add(turn.instruction.removeprefix(body.format(i)))
  assert endings == {wording.replace('{}', '') for wording in questions.CHOICE_INSTRUCTIONS}


@pytest.mark.parametrize(
  'name, keys, ending',
  [
    ('scienceqa_test_img', ('context', 'question'), questions.OFFICIAL_CHOICE),
    ('MMMU_val_single', ('question',), questions.OFFICIAL_CHOICE),
    ('Qbench_dev', ('question',), '{}'),
  ],
)
def test_the_format_of_choices_is_the_official_files_own(name, keys, ending):
  text = (OFFICIAL / f'{name}.json').read_text()
  lines = (
    json.loads(text)
    if text.startswith('[')
    else [json.loads(line) for line in text.splitlines() if line.strip()]
  )
  parts = {
    'context': r'Context:\n(?P<context>.*?)\n',
    'question': r'Question:\n(?P<question>.*)\nChoices:\n(?P<choices>.*)',
  }
  pattern = re.compile(
    ''.join(parts[key] for key in keys) + re.escape(ending.replace('{}', '')), re.DOTALL
  )
  for line in filter(lambda line: line['question'], lines):  # One of MMMU's is empty.
    match = pattern.fullmatch(line['question'])
    choices = re.split(r'\n(?=[A-Z]\. )', match['choices'])
    entries = {
      **{key: match[key] for key in keys},
      'choices': [choice[3:] for choice in choices],
      'answer': line['gt_answers'],
    }
    [turn] = questions.turns(
      [entries | {'instruction': ending}], np.random.default_rng(0), 1, ('{}',)
    )
    assert turn.instruction == line['question'] and turn.answer == line['gt_answers']
    assert questions.score(turn.answer, turn.truth) == (1, 1)


def test_a_hidden_answer_and_a_letter_without_a_choice_are_bad_examples():
  for wrong, reason in (
    (asked(0, answer=''), 'empty answer'),
    (asked(0, answer='', choices=['x', 'y']), 'empty answer'),
    (asked(0, answer='C', choices=['x', 'y']), 'answer is no choice'),
    (asked(0, answer='AB', choices=['x', 'y']), 'answer is no choice'),
    (asked(0, answer='A', choices=['x'] * 27), 'too many choices'),
  ):
    with pytest.raises(BadExample) as caught:
      ask([wrong])
    assert caught.value.reason == reason
  with pytest.raises(BadExample, match='no questions'):
    ask([])


@pytest.mark.parametrize(
  'answer, right',
  [
    ('B', 1),
    ('b.', 1),
    ('(B)', 1),
    (' B: hats', 1),
    ('Red hats', 1),
    ('B. whatever', 1),
    ('**B**', 1),
    ('The answer is **B**.', 1),
    ('**A**', 0),
    ('A', 0),
    ('a cup', 0),
    ('', 0),
    ('Bananas', 0),
    ('AB', 0),
    ('B or A', 0),
    ('[0.1, 0.2, 0.3, 0.4]', 0),
  ],
)
def test_scores_of_choices(answer, right):
  assert questions.score(answer, {'answer': 'B', 'choices': ['a cup', 'red hats', 'dogs']}) == (
    right,
    1,
  )


def test_ten_annotators_are_counted_and_fewer_answers_are_alternatives():
  truth = {'answer': 'cup', 'answers': ANSWERS}
  scores = {
    answer: questions.score(answer, truth)[0] for answer in ('the cup', 'mug', 'bowl', 'hat')
  }
  assert scores == {
    'the cup': 1,
    'mug': pytest.approx(2 / 3),
    'bowl': pytest.approx(1 / 3),
    'hat': 0,
  }
  assert questions.score('**Cup**', truth) == (1, 1)
  few = {'answer': '3', 'answers': ['3', 'three']}
  assert questions.score('Three.', few) == questions.score('3', few) == (1, 1) and questions.score(
    '4', few
  ) == (0, 1)


def test_the_truth_keeps_what_a_metric_needs():
  [turn] = ask([asked(0, answer='cup', answers=ANSWERS, context='Look.')])
  assert turn.truth == {'answer': 'cup', 'answers': ANSWERS, 'id': 'q0'}
  assert 'Context:\nLook.\nQuestion:\nWhat is 0?' in turn.instruction
  assert questions.score(turn.answer, turn.truth) == (1, 1)


@pytest.mark.parametrize(
  'name, answer, truth, right',
  [
    ('vqa', '**red**', 'red', 1),
    ('vqa', 'The answer is red.', 'red', 1),
    ('vqa', 'Redder', 'red', 0),
  ]
  + [
    ('vqa', "No, there isn't", 'no', 1),
    ('vqa', 'Yes or no', 'yes', 0),
    ('ocr', '"sun"', 'sun', 1),
  ]
  + [('counting', '**2**', '2', 1), ('counting', '\\boxed{2}', '2', 1), ('counting', '22', '2', 0)],
)
def test_short_answers_may_have_markup_and_reasons(name, answer, truth, right):
  assert TASKS[name].score(answer, {'answer': truth}) == (right, 1)


def test_any_text_can_be_scored():
  rng = np.random.default_rng(0)
  letters = list(string.printable) + ['é', 'B.', '(B)', '\x00', 'cup']
  truths = [
    {'answer': 'B', 'choices': ['', 'cup']},
    {'answer': 'cup', 'answers': ANSWERS},
    {'answer': 'cup', 'answers': []},
    {'answer': 'cup'},
  ]
  for _ in range(300):
    text = ''.join(rng.choice(letters, rng.integers(12)))
    for truth in truths:
      right, most = questions.score(text, truth)
      assert 0 <= right <= most == 1


def test_the_official_prompt_comes_first():
  config = json.loads((OFFICIAL / 'annotation_config.json').read_text())
  prompts = {name: entry['prompt']['input'] for name, entry in config.items()}
  assert (
    TASKS['vqa'].instructions[0]
    == TASKS['ocr'].instructions[0]
    == TASKS['counting'].instructions[0]
    == prompts['mme']
  )
  assert TASKS['rec'].instructions[0] == prompts['refcoco_val']
