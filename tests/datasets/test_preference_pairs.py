"""Preference pairs: the user's own, well-formed and malformed, and those of miniworld."""

import json

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import open_source
from sphinx_jax.miniworld import builder, scene
from sphinx_jax.tasks import caption

TEXTS = {'prompt': 'What?', 'chosen': 'A cat.', 'rejected': 'A dog.'}


def says(role, content):
  return [{'role': role, 'content': content}]


def opened(folder, *lines):
  Image.fromarray(np.zeros((3, 5, 3), np.uint8)).save(folder / 'a.png')
  path = folder / 'pairs.jsonl'
  path.write_text('\n'.join(line if isinstance(line, str) else json.dumps(line) for line in lines))
  return open_source({'source': 'pairs', 'path': str(path), 'weight': 1.0}, None)


IMAGE = [{'type': 'image'}, {'type': 'text', 'text': 'What?'}]
FORMS = [
  ({**TEXTS, 'image': 'a.png'}, 'What?', 'text'),
  ({**TEXTS, 'images': ['a.png'], 'prompt': '<image>\nWhat?'}, '<image>What?', 'loose'),
  (
    {
      'images': ['a.png'],
      'prompt': says('user', IMAGE),
      'chosen': says('assistant', [{'type': 'text', 'text': 'A cat.'}]),
      'rejected': says('assistant', 'A dog.'),
    },
    '<image>What?',
    'inline',
  ),
  (
    {
      'images': ['a.png'],
      'chosen': says('user', IMAGE) + says('assistant', 'A cat.'),
      'rejected': says('user', IMAGE) + says('assistant', 'A dog.'),
    },
    '<image>What?',
    'inline',
  ),
  (
    {
      'images': ['a.png'],
      'conversations': [{'from': 'human', 'value': '<image>What?'}],
      'chosen': {'from': 'gpt', 'value': 'A cat.'},
      'rejected': {'from': 'gpt', 'value': 'A dog.'},
    },
    '<image>What?',
    'inline',
  ),
]


@pytest.mark.parametrize('line, question, marks', FORMS)
def test_all_forms_are_one_pair(tmp_path, line, question, marks):
  source = opened(tmp_path, line)
  assert source.pairs and len(source) == 1
  assert source[0].turns == ((question, 'A cat.'),) and source[0].rejected == 'A dog.'
  assert source[0].images == ((tmp_path / 'a.png').read_bytes(),) and source[0].marks == marks


def test_earlier_turns_stay_in_the_dialog(tmp_path):
  prompt = says('user', 'Hi') + says('assistant', 'Hello') + says('user', 'What?')
  record = opened(tmp_path, {**TEXTS, 'prompt': prompt})[0]
  assert record.turns == (('Hi', 'Hello'), ('What?', 'A cat.')) and record.rejected == 'A dog.'


@pytest.mark.parametrize(
  'line, reason',
  [
    ('{"prompt": ', 'not json'),
    ('[1]', 'not a pair'),
    ({'prompt': 'What?', 'chosen': 'A cat.'}, 'not a pair'),
    ({**TEXTS, 'rejected': 'A cat. '}, 'not a pair'),
    ({**TEXTS, 'rejected': ' '}, 'empty answer'),
    ({**TEXTS, 'rejected': None}, 'not a pair'),
    ({**TEXTS, 'rejected': 5}, 'not a pair'),
    ({**TEXTS, 'image': 'no/such.png'}, 'missing image'),
    ({'chosen': says('user', 'What?'), 'rejected': says('user', 'What?')}, 'empty answer'),
    (
      {
        'chosen': says('user', 'A') + says('assistant', 'x'),
        'rejected': says('user', 'B') + says('assistant', 'y'),
      },
      'not a pair',
    ),
  ],
)
def test_bad_lines_are_named_and_leave_the_others(tmp_path, line, reason):
  source = opened(tmp_path, TEXTS, line, TEXTS)
  with pytest.raises(BadExample, match=f'{source.path}:2: ') as caught:
    source[1]
  assert caught.value.reason == reason
  assert source[0].rejected == source[2].rejected == 'A dog.'


def test_rejected_captions_of_miniworld_have_objects_that_are_not_in_the_scene(tmp_path):
  kinds = {'objects': 20, 'words': 1, 'page': 1, 'figure': 1, 'text': 1}
  builder.build(tmp_path, dict.fromkeys(scene.SPLITS, kinds), seed=2)
  entry = {'source': 'miniworld_pairs', 'task': 'caption', 'split': 'train', 'weight': 1.0}
  source = open_source(entry, tmp_path)
  assert source.pairs and len(source) == 20
  wrong = 0
  for index in range(20):
    record = source[index]
    assert source[index] == record
    ((_, chosen),) = record.turns
    seen, claimed = caption.things(chosen), caption.things(record.rejected)
    look = {f'{thing["color"]} {thing["name"]}' for thing in source.annotation(index)['objects']}
    assert seen == look and len(claimed) == len(seen) and claimed - look
    wrong += len(claimed - look)
  assert wrong > 25  # Of about 40 objects, half or at least one of a scene.
