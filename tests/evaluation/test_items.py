import base64
import json

import pytest
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.evaluation import items


def opened(place, prompt='What?', **options):
  return items.open_items(str(place), prompt, 8, **options)


def image(path):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new('RGB', (4, 3)).save(path)


def jsonl(path, *lines):
  texts = (line if isinstance(line, str) else json.dumps(line) for line in lines)
  path.write_text(''.join(f'{text}\n' for text in texts))
  return path


def test_a_folder_is_the_sorted_images_in_it_and_below(tmp_path, caplog):
  names = ['b.png', 'a.PNG', 'кошка/猫.jpg', 'x/a.png', 'x/y/a.png', 'x y [1].webp']
  for name in [*names, '.hidden.png', '.git/a.png', 'drawn/b.png.jpg']:
    image(tmp_path / 'in' / name)
  (tmp_path / 'in' / 'notes.txt').write_text('')
  (tmp_path / 'in' / 'Makefile').write_text('')
  (tmp_path / 'in' / 'x' / 'up').symlink_to(tmp_path / 'in')
  image(tmp_path / 'elsewhere' / 'c.png')
  (tmp_path / 'in' / 'link').symlink_to(tmp_path / 'elsewhere')
  with caplog.at_level('INFO', 'sphinx_jax'):
    found = opened(tmp_path / 'in', exclude=str(tmp_path / 'in' / 'drawn'))
  assert found.ids == sorted([*names, 'link/c.png'])
  assert 'left out files that are not named as images (1 .txt, 1 no ending)' in caplog.text
  question = found.questions[found.ids.index('x/a.png')]
  assert question.entry == {'item': {'image': 'x/a.png'}} and question.prompt == 'What?'
  assert question.images == (tmp_path / 'in' / 'x' / 'a.png',)
  assert opened(tmp_path / 'in', limit=2).ids == found.ids[:2]


def test_a_pattern_is_what_it_matches_as_given(tmp_path, monkeypatch):
  for name in ('a/1.png', 'a/2.png', 'b/1.png', 'a/1.txt'):
    image(tmp_path / name.replace('.txt', '.bmp'))
  monkeypatch.chdir(tmp_path)
  assert opened('*/1.*').ids == ['a/1.bmp', 'a/1.png', 'b/1.png']
  assert opened('**/*.png', exclude='b').ids == ['a/1.png', 'a/2.png']
  assert opened('a/2.png').ids == ['a/2.png']
  assert opened(tmp_path / 'a' / '*.bmp').ids == [str(tmp_path / 'a' / '1.bmp')]


@pytest.mark.parametrize(
  'place, prompt, message',
  [
    ('nowhere', 'x', "--input 'nowhere': got no such file, expected images"),
    ('*.jpg', 'x', "'\\*.jpg': got no such file"),
    ('empty', 'x', "'empty': got no file, expected images"),
    ('texts', 'x', r'got files that are not named as images \(1 .md\)'),
    ('texts/a.md', None, '--prompt: got none'),
    ('empty.jsonl', None, 'an empty file'),
    ('gs://bucket/x', 'x', 'a local path'),
    ('texts', '<image> and <image>', '2 <image> marks, expected at most one'),
  ],
)
def test_an_input_with_nothing_to_ask_is_refused(place, prompt, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'texts').mkdir()
  (tmp_path / 'texts' / 'a.md').write_text('x')
  (tmp_path / 'empty.jsonl').write_text('')
  with pytest.raises(errors.SphinxError, match=message):
    opened(place, prompt)


def asked(question):
  return list(question.history), question.prompt


def test_every_form_of_a_line_becomes_a_question(tmp_path):
  image(tmp_path / 'in' / 'a.png')
  user, gpt = {'from': 'human', 'value': 'One?'}, {'from': 'gpt', 'value': 'Yes.'}
  data = 'data:image/png;base64,' + base64.b64encode(b'123').decode()
  lines = [
    ({'id': 7, 'image': 'a.png', 'prompt': 'Where?', 'size': 3}, ([], 'Where?')),
    ({'image': 'a.png'}, ([], 'Default?')),
    ({'question_id': 'q', 'images': ['a.png', 'b.png'], 'prompt': '<image> or <image>?'}, None),
    ({'image': 'a.png', 'conversations': [user, gpt, user]}, ([('One?', 'Yes.')], 'One?')),
    ({'image': 'a.png', 'conversations': [user, gpt]}, ([], 'One?')),
    ({'messages': [{'role': 'user', 'content': [{'type': 'text', 'text': 'Hi'}]}]}, ([], 'Hi')),
    ({'query': 'Who?', 'response': 'You.', 'image': 'a.png'}, ([], 'Who?')),
    ({'instruction': 'Sum', 'input': '1, 2'}, ([], 'Sum\n1, 2')),
    ({'image': data, 'prompt': 'x'}, ([], 'x')),
    ({'prompt': 'Who made cat.png'}, ([], 'Who made cat.png')),
  ]
  path = jsonl(tmp_path / 'in' / 'x.jsonl', *(line for line, _ in lines))
  questions = opened(path, 'Default?').questions
  for question, (line, expected) in zip(questions, lines):
    assert question.fault is None, question.fault
    assert expected is None or asked(question) == expected, line
  assert [question.entry['item'] for question in questions][:3] == [
    {'id': 7, 'image': 'a.png'},
    {'image': 'a.png'},
    {'question_id': 'q', 'images': ['a.png', 'b.png']},
  ]
  assert questions[2].images == (tmp_path / 'in' / 'a.png', tmp_path / 'in' / 'b.png')
  assert questions[8].images == (b'123',)
  assert questions[8].entry['item']['image'].startswith('data:image/png;base64,')
  assert data not in questions[8].entry['item']['image']  # Its hash.
  (tmp_path / 'in' / 'x.json').write_text(json.dumps([line for line, _ in lines]))
  listed = opened(tmp_path / 'in' / 'x.json', 'Default?').questions
  assert [asked(question) for question in listed] == [asked(question) for question in questions]


@pytest.mark.parametrize(
  'line, reason, carried',
  [
    ('{"image": "a.png", "pro', 'not json', {}),
    ('[1]', 'not a conversation', {}),
    ({'id': 3, 'image': 'a.png'}, 'no question', {'id': 3, 'image': 'a.png'}),
    ({'image': 'a.png', 'prompt': 5}, 'no question', {'image': 'a.png'}),
    ({'image': 'http://x/a.png', 'prompt': 'x'}, 'missing image', {'image': 'http://x/a.png'}),
    ({'image': 'a.png', 'prompt': '<image><image>'}, 'image marks', {'image': 'a.png'}),
    ({'img': 3, 'image': 'a.png', 'prompt': 'x'}, 'missing image', {'image': 'a.png'}),
    ({'image': 'a.png', 'prompt': '\ud83d'}, 'not unicode', {'image': 'a.png'}),
    ({'messages': [{'role': 'assistant', 'content': 'x'}]}, 'not a conversation', {}),
  ],
)
def test_a_line_that_is_no_question_has_a_fault_and_stays_in_its_place(
  line, reason, carried, tmp_path
):
  path = jsonl(tmp_path / 'x.jsonl', {'prompt': 'a'}, line, {'prompt': 'b'})
  first, bad, last = opened(path, None).questions
  assert asked(first) == ([], 'a') and asked(last) == ([], 'b')
  assert bad.fault.reason == reason and 'x.jsonl:2' in bad.fault.message
  assert bad.entry == {'item': carried}


def test_the_id_of_a_line_does_not_depend_on_the_others(tmp_path):
  one, two, three = ({'prompt': text} for text in 'abc')
  before = opened(jsonl(tmp_path / 'x.jsonl', one, two, two)).ids
  after = opened(jsonl(tmp_path / 'x.jsonl', three, two, one, '', two)).ids
  assert len(set(before)) == 3 and set(before) < set(after)
  assert before[1] == after[1] and before[0] == after[2]
