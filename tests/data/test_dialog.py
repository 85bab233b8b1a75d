"""Dialog template and loss mask, compared with the official dataset and conversation code."""

import json
from pathlib import Path

import numpy as np
import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import tokenizer as tokenizers
from sphinx_jax.data.dialog import STYLES, SYSTEM, Template

GOLDEN = Path(__file__).parents[1] / 'golden'
INPUTS = {
  item['id']: item for item in json.loads((GOLDEN / 'conversation/inputs.json').read_text())
}
DATASET = json.loads((GOLDEN / 'conversation/dataset_goldens.json').read_text())
PROMPTS = json.loads((GOLDEN / 'conversation/prompts_tokenizer.json').read_text())
# The official search for an answer's ids finds the question, which has the same text.
OFFICIAL_IS_WRONG = 'answer_equals_earlier_question'


@pytest.fixture(scope='module')
def tokenizer():
  return tokenizers.load(GOLDEN / 'tokenizer.model')


def _turns(name):
  """(question, answer) pairs of a golden conversation. A missing question is None."""
  turns = []
  for message in INPUTS[name]['conversations']:
    value = str(message['value']).replace('<image>', '').strip()
    if message['from'] == 'human':
      turns.append((value, None))
    elif turns and turns[-1][1] is None:
      turns[-1] = (turns[-1][0], value)
    else:
      turns.append((None, value))
  return turns


def _labels(ids, weights, length):
  labels = np.where(weights > 0, ids, 0)[:length]
  return np.pad(labels, (0, length - len(labels))).tolist()


@pytest.mark.parametrize('name', sorted(INPUTS))
def test_text_ids_and_labels_equal_official(name, tokenizer):
  golden = DATASET['items'][name]
  ids, weights, _ = Template().encode(_turns(name), tokenizer)
  assert Template().render(_turns(name)) == golden['text']
  assert ids == golden['full_ids']
  if golden['has_image']:
    marked = [(question and f'<image>\n{question}', answer) for question, answer in _turns(name)]
    assert Template().encode(marked, tokenizer, [1], 'loose')[::2] == (ids, (1,))
  length = DATASET['max_words'] - (DATASET['image_words'] if golden['has_image'] else 0)
  labels = _labels(ids, weights, length)
  assert (labels == golden['labels'][:length]) == (name != OFFICIAL_IS_WRONG)


def test_labels_are_on_the_answers_where_official_errs(tokenizer):
  ids, weights, _ = Template().encode(_turns(OFFICIAL_IS_WRONG), tokenizer)
  official = np.array(DATASET['items'][OFFICIAL_IS_WRONG]['labels'][: len(ids)])
  labels = np.flatnonzero(weights)
  # The official labels are the same words, but some of them are in the question.
  assert tokenizer.decode(np.array(ids)[official > 0]) == tokenizer.decode(np.array(ids)[labels])
  assert official.nonzero()[0][0] < labels[0]
  groups = np.split(labels, np.flatnonzero(np.diff(labels) > 1) + 1)
  for group, answer in zip(groups, ('A yellow ball.', 'No.'), strict=True):
    assert tokenizer.decode([ids[i] for i in group]) == answer + '\n###'
    assert tokenizer.decode(ids[: group[0]]).endswith('### Assistant:')


def test_weights_literally(tokenizer):
  ids, weights, _ = Template('').encode([('Hi', 'Yes.'), ('Q', 'No.')], tokenizer)
  text = [tokenizer.decode([tokenizer.encode('a')[0], i])[1:] for i in ids]
  assert text == [
    '',
    ' ###',
    ' Human',
    ':',
    ' H',
    'i',
    '\n',
    '###',
    ' Assistant',
    ':',
    ' ',
    'Y',
    'es',
    '.',
    '\n',
    '###',
    ' Human',
    ':',
    ' ',
    'Q',
    '\n',
    '###',
    ' Assistant',
    ':',
    ' ',
    'N',
    'o',
    '.',
    '\n',
    '###',
    '',
  ]
  assert weights.dtype == np.float32
  assert weights.tolist() == [0.0] * 10 + [1.0] * 6 + [0.0] * 8 + [1.0] * 6 + [0.0]


@pytest.mark.parametrize('case', PROMPTS['default']['cases'], ids=str)
def test_prompt_equals_official(case, tokenizer):
  template = Template()
  assert template.render(case['qas'], open_ended=True) == case['prompt']
  assert template.prompt(case['qas'], tokenizer).ids == case['ids']
  assert template.stop == PROMPTS['default']['response_end_signal']


@pytest.mark.parametrize('case', PROMPTS['multimodal']['cases'], ids=str)
def test_other_system_prompts_are_a_setting(case, tokenizer):
  """The official template "multimodal"."""
  system, _, _ = case['prompt'].partition('\n\n###')
  assert Template(system).render(case['qas'], open_ended=True) == case['prompt']
  assert Template(system).prompt(case['qas'], tokenizer).ids == case['ids']


OFFICIAL = [
  (style, case)
  for style in sorted(STYLES.keys() & PROMPTS.keys())
  for case in PROMPTS[style]['cases']
  if 'prompt' in case  # The official code raises for a dialog without a last question.
]


@pytest.mark.parametrize('style, case', OFFICIAL, ids=str)
def test_other_official_templates_are_styles(style, case, tokenizer):
  template = Template(style=style)
  assert template.render(case['qas'], open_ended=True) == case['prompt']
  assert template.prompt(case['qas'], tokenizer).ids == case['ids']
  assert template.stop == PROMPTS[style]['response_end_signal']


def test_an_unknown_style_is_refused():
  with pytest.raises(SphinxError, match="did you mean 'vicuna_v1_1'"):
    Template(style='vicuna_v11')


@pytest.mark.parametrize('system', ['', 'You see images.', SYSTEM])
def test_prompt_is_what_training_saw_before_the_answer(system, tokenizer):
  template = Template(system)
  ids, weights, _ = template.encode([('What?', 'A dog.'), ('Where?', '[0.25, 0.31]')], tokenizer)
  prompt = template.prompt([('What?', 'A dog.'), ('Where?', None)], tokenizer).ids
  last = np.flatnonzero(np.diff(weights) > 0)[-1] + 1
  assert ids[:last] == prompt
  assert tokenizer.decode(prompt).endswith('Assistant:')


def test_without_system_the_dialog_begins_with_the_separator():
  assert Template('').render([('Hi', 'Yes')]) == '### Human: Hi\n### Assistant: Yes\n###'


def test_labels_survive_text_of_many_bytes_a_character(tokenizer):
  ids, weights, _ = Template('图😀').encode([('é图', '😀猫'), (None, '图')], tokenizer)
  trained = [i for i, weight in zip(ids, weights) if weight]
  assert tokenizer.decode(trained) == '😀猫\n### 图\n###'


def shown(encoded, tokenizer):
  """The text of a dialog with a mark for every slot."""
  ends = [*encoded.images_at, len(encoded.ids)]
  parts = [encoded.ids[begin:end] for begin, end in zip([0, *ends], ends)]
  return '▣'.join(tokenizer.decode(part) for part in parts)


PLACES = [  # (questions, slots, marks, place of images, what the model sees)
  (['Is <image> it?'], [1], 'text', 'front', '▣### Human: Is <image> it?\n### Assistant:'),
  (['Is <image> it?'], [], 'text', 'inline', '### Human: Is <image> it?\n### Assistant:'),
  (['<image>Q'], [1], 'loose', 'front', '▣### Human: Q\n### Assistant:'),
  (['Q<image>'], [1], 'loose', 'inline', '### Human: Q▣\n### Assistant:'),
  (['Q<image>'], [1], 'inline', 'front', '### Human: Q▣\n### Assistant:'),
  (['Q'], [1], 'inline', 'inline', '▣### Human: Q\n### Assistant:'),
  (['<image>and<image>'], [1, 1], 'loose', 'front', '### Human: ▣and▣\n### Assistant:'),
  (['<image>and<image>'], [2, 1], 'text', 'front', '### Human: ▣▣and▣\n### Assistant:'),
  (['Q'], [1, 2], 'text', 'front', '▣▣▣### Human: Q\n### Assistant:'),
]


@pytest.mark.parametrize('questions, slots, marks, place, seen', PLACES)
def test_where_images_stand(questions, slots, marks, place, seen, tokenizer):
  template = Template('', images=place)
  turns = [(question, None) for question in questions]
  prompt = template.prompt(turns, tokenizer, slots, marks=marks)
  assert shown(prompt, tokenizer) == seen
  trained = template.encode([(questions[0], 'Yes.')], tokenizer, slots, marks)
  assert shown(trained, tokenizer).startswith(seen) and trained.images_at == prompt.images_at


def test_an_unknown_place_of_images_is_refused():
  with pytest.raises(SphinxError, match="did you mean 'inline'"):
    Template(images='inlin')
