"""Conversations of the common tools: what is read, and what is counted with its key."""

import base64
import json
import random

import pytest

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import conversations
from sphinx_jax.datasets.jsonl import Jsonl
from tests.datasets import image_files

QA = (('What?', 'A cat.'),)


def llava(question='What?', answer='A cat.', **more):
  turns = [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]
  return {'conversations': turns, **more}


def messages(*turns, **more):
  return {'messages': [{'role': role, 'content': content} for role, content in turns], **more}


def parts(*content):
  return messages(('user', list(content)), ('assistant', [{'type': 'text', 'text': 'A cat.'}]))


TEXT = {'type': 'text', 'text': 'What?'}


def read(item):
  """(turns, path of the image) of an item that has passed through a file."""
  value = json.loads(json.dumps(item))
  conversation = conversations.read('here', value)
  return conversations.read_turns('here', conversation.messages), conversation.image


@pytest.mark.parametrize(
  'item, turns, image',
  [
    (llava(), QA, None),
    (llava('<image>\nWhat?', image='a.png'), QA, 'a.png'),
    (llava('<image>\nWhat?', image=['a.png']), QA, 'a.png'),
    *(
      (llava('<image>What?', **{key: ['a.png']}), QA, 'a.png') for key in ('images', 'image_paths')
    ),
    *((llava('<image>What?', **{key: 'a.png'}), QA, 'a.png') for key in ('image_path', 'img')),
    (llava('<image>What?', imagePath='file:///d/a.png'), QA, '/d/a.png'),
    (llava('<image>What?', images=[{'bytes': None, 'path': 'a.png'}]), QA, 'a.png'),
    (llava('<image>What?', image='a.png', images=['a.png']), QA, 'a.png'),
    (llava(images=[], image=None, video=None, system=''), QA, None),
    (llava('Picture 1: <img>d/a.png</img>\nWhat?'), QA, 'd/a.png'),
    (llava(answer=4), (('What?', '4'),), None),
    (llava(answer=2.5), (('What?', '2.5'),), None),
    (messages(('user', 'What?'), ('assistant', 'A cat.')), QA, None),
    (messages(('User', 'What?'), ('MODEL', 'A cat.')), QA, None),
    (messages(('human', '<image>What?'), ('gpt', 'A cat.'), images=['a.png']), QA, 'a.png'),
    (
      messages(('system', 'Be kind.'), ('user', 'x'), ('assistant', 'y')),
      (('Be kind.\nx', 'y'),),
      None,
    ),
    (messages(('system', ' '), ('user', 'What?'), ('assistant', 'A cat.')), QA, None),
    (llava(system='Be kind.'), (('Be kind.\nWhat?', 'A cat.'),), None),
    (parts({'type': 'image', 'image': 'a.png'}, TEXT), QA, 'a.png'),
    (parts({'type': 'image_url', 'image_url': {'url': 'a.png'}}, TEXT), QA, 'a.png'),
    ({**parts({'type': 'image'}, TEXT), 'images': ['a.png']}, QA, 'a.png'),
    (parts({'image': 'a.png'}, {'text': 'What?'}), QA, 'a.png'),
    *(
      (parts({'type': kind, key: 'a.png', 'text': ''}, TEXT), QA, 'a.png')
      for kind, key in (('image', 'image'), ('input_image', 'image_url'), ('x', 'image_path'))
    ),
    (parts({'type': 'image', 'index': 0}, TEXT) | {'images': ['a.png']}, QA, 'a.png'),
    (
      {
        'conversations': [
          {'from': None, 'role': 'user', 'value': None, 'content': 'What?', 'image': 'a.png'},
          {'from': 'gpt', 'role': None, 'value': 'A cat.', 'content': None, 'image': None},
        ]
      },
      QA,
      'a.png',
    ),
    (
      messages(('developer', 'Be kind.'), ('user', 'x'), ('bot', 'y')),
      (('Be kind.\nx', 'y'),),
      None,
    ),
    (dict(query='<image>What?', response='A cat.', images=['a.png']), QA, 'a.png'),
    (
      dict(query='x', response='y', history=[['a', 'b'], ['c', 'd']], system='s'),
      (('s\na', 'b'), ('c', 'd'), ('x', 'y')),
      None,
    ),
    (dict(instruction='What?', input='', output='A cat.'), QA, None),
    (dict(instruction='Add.', input='2 3', output=5), (('Add.\n2 3', '5'),), None),
  ],
)
def test_the_forms_of_common_tools_are_read(item, turns, image):
  assert read(item) == (turns, image)


@pytest.mark.parametrize(
  'item, reason, words',
  [
    *(
      (llava(answer=value), 'not a conversation', str(value))
      for value in (None, True, float('nan'), float('inf'), {})
    ),
    (llava(question=float('nan')), 'not a conversation', 'nan'),
    (dict(instruction='x', input=float('nan'), output='y'), 'not a conversation', 'nan'),
    (llava('<image>What?'), 'missing image', 'no image among "conversations"'),
    (llava('<image>What?', images=[]), 'missing image', '"images"'),
    *(
      (llava(f'{mark}What?'), 'missing image', mark)
      for mark in ('<IMAGE>', '<image_1>', '<image 2>', '<|image_1|>', '<ImageHere>')
    ),
    *(
      (llava(f'{mark}What?'), 'missing image', mark)
      for mark in ('<IMG_CONTEXT>', '<|vision_start|>', '<start_of_image>', '<image_placeholder>')
    ),
    (llava('<image>Or <image>?', image='a.png'), 'several images', '<image> twice'),
    (llava(answer=['a cat', 'a dog']), 'not a conversation', 'a list, not one text'),
    (
      llava('<ref-object>?', '<bbox>', objects={'bbox': []} | {'ref': ['a']}),
      'not a conversation',
      '"objects"',
    ),
    (
      messages(('user', 'x'), ('assistant', [{'type': 'image', 'image': 'a.png'}])),
      'unsupported media',
      'answer has',
    ),
    *(
      ({'messages': [{'role': 'model', 'content': 'y', **mask}]}, 'unsupported loss mask', 'loss')
      for mask in ({'weight': 0}, {'loss': False})
    ),
    *((llava(**{key: 'd/a.JPG'}), 'unknown image key', key) for key in ('file_name', 'media')),
    (
      {'messages': [{'role': 'user', 'content': 'x', 'visual': ['a.png']}]},
      'unknown image key',
      '"visual"',
    ),
    (llava(image=float('nan')), 'missing image', '"image" is nan'),
    (llava(image=True), 'missing image', '"image" is True'),
    (llava(image=''), 'missing image', '"image" is \'\''),
    (llava(image=[None]), 'missing image', 'None'),
    (llava('<image>What?', photos=['a.png']), 'missing image', '"photos"'),
    (llava(picture='a.png'), 'unknown image key', '"picture"'),
    (llava(image_list=['a.png']), 'unknown image key', '"image_list"'),
    (llava(video='a.mp4'), 'unsupported media', '"video"'),
    (llava(videos=['a.mp4']), 'unsupported media', '"videos"'),
    (llava(images=['a.png', 'b.png']), 'several images', '2 images, one image an example is supp'),
    (llava('<img>a</img><img>b</img>'), 'several images', '2 images'),
    (parts({'type': 'video', 'video': 'a.mp4'}, TEXT), 'not a conversation', 'a.mp4'),
    (parts({'type': 'image'}, TEXT), 'missing image', 'no image among "messages"'),
    (messages(('tool', 'x'), ('assistant', 'y')), 'unknown speaker', "'tool'"),
    (messages(('system', 'x')), 'not a conversation', 'system message'),
    ({'dialog': [], 'id': 3}, 'not a conversation', '"dialog", "id"'),
    ({'query': 'x'}, 'not a conversation', '"query"'),
    ({'messages': ['hi']}, 'not a conversation', 'needs "from" and "value"'),
    (dict(query='x', response='y', history=['a']), 'not a conversation', '"history"'),
    (dict(query='x', response=''), 'empty answer', 'empty'),
    ([], 'not a conversation', 'not an object'),
  ],
)
def test_what_cannot_be_read_is_counted_with_its_key(item, reason, words):
  with pytest.raises(BadExample) as caught:
    read(item)
  assert caught.value.reason == reason and words in caught.value.message
  assert caught.value.message.startswith('here: ')


def test_metadata_of_images_means_no_image():
  assert read(llava(image_width=3, image_size=[4, 5], id='a.png', image_source=None)) == (QA, None)
  assert read(llava('a.png', '<image>b.png', weight=0)) == ((('a.png', 'b.png'),), None)


def test_any_item_is_read_or_counted():
  rng = random.Random(0)
  values = (
    None,
    True,
    7,
    float('nan'),
    '',
    'x',
    '<image>',
    [],
    ['a'],
    {},
    [{'type': 'image'}],
    [[]],
  )
  bases = (llava(), parts(TEXT), dict(query='x', response='y', history=[]))
  for _ in range(400):
    item = json.loads(json.dumps(rng.choice(bases)))
    places = [item, *(turn for turns in item.values() if isinstance(turns, list) for turn in turns)]
    for _ in range(rng.randrange(1, 4)):
      place = rng.choice(places)
      key = rng.choice(('image', 'images', 'system', 'history', 'video', *place))
      place[key] = rng.choice(values)
    try:
      turns, image = read(item)
    except BadExample as error:
      assert len(error.message) < 400
    else:
      assert turns and all(answer and answer != 'nan' for _, answer in turns)
      assert image is None or isinstance(image, str)


def test_the_image_of_a_record_is_read(tmp_path):
  image_files.write(tmp_path / 'a.png')
  items = [llava('<image>What?', image=['a.png']), llava('<image>What?', images=['a.png'])]
  data = base64.b64encode((tmp_path / 'a.png').read_bytes()).decode()
  items += [
    parts({'type': 'image_url', 'image_url': {'url': f'data:image/png;base64,{data}'}}, TEXT)
  ]
  items += [llava(answer=float('nan')), llava('<image>What?', img='gone.png')]
  items += [llava(image='https://example.org/a.png'), llava(image='data:image/png;base64,%')]
  (tmp_path / 'my.jsonl').write_text('\n'.join(map(json.dumps, items)))
  source = Jsonl(tmp_path / 'my.jsonl')
  for index in range(3):
    assert source[index].image == (tmp_path / 'a.png').read_bytes()
  for line, message in (
    (4, '.*nan'),
    (5, "'gone.png': No such file"),
    (6, '.*a URL'),
    (7, "'data:"),
  ):
    with pytest.raises(BadExample, match=f'my.jsonl:{line}: {message}'):
      source[line - 1]
