"""Conversations of the common tools: what is read, and what is counted with its key."""

import base64
import json
import random

import pytest

from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import conversations
from sphinx_jax.datasets.conversations import Media
from sphinx_jax.datasets.jsonl import Jsonl
from tests.datasets import image_files

QA = (('What?', 'A cat.'),)
MARKED = (('<image>What?', 'A cat.'),)


def llava(question='What?', answer='A cat.', **more):
  turns = [{'from': 'human', 'value': question}, {'from': 'gpt', 'value': answer}]
  return {'conversations': turns, **more}


def messages(*turns, **more):
  return {'messages': [{'role': role, 'content': content} for role, content in turns], **more}


def parts(*content):
  return messages(('user', list(content)), ('assistant', [{'type': 'text', 'text': 'A cat.'}]))


TEXT = {'type': 'text', 'text': 'What?'}


def read(item):
  """(turns, media, marks) of an item that has passed through a file."""
  value = json.loads(json.dumps(item))
  conversation = conversations.read('here', value)
  turns = conversations.read_turns('here', conversation.messages)
  return turns, conversation.media, conversation.marks


@pytest.mark.parametrize(
  'item, turns, image',
  [
    (llava(), QA, None),
    (llava('<image>\nWhat?', image='a.png'), MARKED, 'a.png'),
    (llava('<image>\nWhat?', image=['a.png']), MARKED, 'a.png'),
    *(
      (llava('<image>What?', **{key: ['a.png']}), MARKED, 'a.png')
      for key in ('images', 'image_paths')
    ),
    *((llava('<image>What?', **{key: 'a.png'}), MARKED, 'a.png') for key in ('image_path', 'img')),
    (llava('<image>What?', imagePath='file:///d/a.png'), MARKED, '/d/a.png'),
    (llava('<image>What?', images=[{'bytes': None, 'path': 'a.png'}]), MARKED, 'a.png'),
    (llava('<image>What?', image='a.png', images=['a.png']), MARKED, 'a.png'),
    (llava(images=[], image=None, video=None, system=''), QA, None),
    (llava('Picture 1: <img>d/a.png</img>\nWhat?'), MARKED, 'd/a.png'),
    (llava(answer=4), (('What?', '4'),), None),
    (llava(answer=2.5), (('What?', '2.5'),), None),
    (messages(('user', 'What?'), ('assistant', 'A cat.')), QA, None),
    (messages(('User', 'What?'), ('MODEL', 'A cat.')), QA, None),
    (messages(('human', '<image>What?'), ('gpt', 'A cat.'), images=['a.png']), MARKED, 'a.png'),
    (
      messages(('system', 'Be kind.'), ('user', 'x'), ('assistant', 'y')),
      (('Be kind.\nx', 'y'),),
      None,
    ),
    (messages(('system', ' '), ('user', 'What?'), ('assistant', 'A cat.')), QA, None),
    (llava(system='Be kind.'), (('Be kind.\nWhat?', 'A cat.'),), None),
    (parts({'type': 'image', 'image': 'a.png'}, TEXT), MARKED, 'a.png'),
    (parts({'type': 'image_url', 'image_url': {'url': 'a.png'}}, TEXT), MARKED, 'a.png'),
    ({**parts({'type': 'image'}, TEXT), 'images': ['a.png']}, MARKED, 'a.png'),
    (parts({'image': 'a.png'}, {'text': 'What?'}), MARKED, 'a.png'),
    *(
      (parts({'type': kind, key: 'a.png', 'text': ''}, TEXT), MARKED, 'a.png')
      for kind, key in (('image', 'image'), ('input_image', 'image_url'), ('x', 'image_path'))
    ),
    (parts({'type': 'image', 'index': 0}, TEXT) | {'images': ['a.png']}, MARKED, 'a.png'),
    (
      {
        'conversations': [
          {'from': None, 'role': 'user', 'value': None, 'content': 'What?', 'image': 'a.png'},
          {'from': 'gpt', 'role': None, 'value': 'A cat.', 'content': None, 'image': None},
        ]
      },
      MARKED,
      'a.png',
    ),
    (
      messages(('developer', 'Be kind.'), ('user', 'x'), ('bot', 'y')),
      (('Be kind.\nx', 'y'),),
      None,
    ),
    (dict(query='<image>What?', response='A cat.', images=['a.png']), MARKED, 'a.png'),
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
  read_turns, media, _ = read(item)
  assert read_turns == turns
  assert media == ([] if image is None else [Media(image)])


A, B = Media('a.png'), Media('b.png')
BOTH = {'images': ['a.png', 'b.png']}
IMAGE = {'type': 'image'}


@pytest.mark.parametrize(
  'item, questions, media, marks',
  [
    (llava('What?', **BOTH), ['What?'], [A, B], 'text'),
    (llava('What?', image=['a.png', 'b.png']), ['What?'], [A, B], 'text'),
    (llava('What?', images=['a.png', 'a.png']), ['What?'], [A, A], 'text'),
    (llava('<image>\n<image>\nWhat?', **BOTH), ['<image><image>What?'], [A, B], 'loose'),
    (
      llava('Is <image> like\n <image> ?', **BOTH),
      ['Is <image> like\n <image> ?'],
      [A, B],
      'loose',
    ),
    (llava('What?\n<image>', image='a.png'), ['What?<image>'], [A], 'loose'),
    (
      llava('Picture 1: <img>b.png</img>\nPicture 2: <img>a.png</img>?'),
      ['Picture 1: <image>\nPicture 2: <image>?'],
      [B, A],
      'loose',
    ),
    (
      {
        'conversations': [
          {'from': 'human', 'value': '<image>\nWhat?'},
          {'from': 'gpt', 'value': 'A cat.'},
          {'from': 'human', 'value': 'And\n<image>'},
          {'from': 'gpt', 'value': 'Not an <image>.'},
        ],
        **BOTH,
      },
      ['<image>What?', 'And<image>'],
      [A, B],
      'loose',
    ),
    (  # A mark in every question about one image.
      messages(
        ('user', '<image>x'), ('bot', 'y'), ('user', '<image>z'), ('bot', 'w'), image='a.png'
      ),
      ['<image>x', 'z'],
      [A],
      'inline',
    ),
    (
      parts(IMAGE | {'image': 'b.png'}, TEXT, IMAGE, {'type': 'text', 'text': 'And?'})
      | {'images': ['a.png']},
      ['<image>What?<image>And?'],
      [B, A],
      'inline',
    ),
    (parts(IMAGE, TEXT, IMAGE) | BOTH, ['<image>What?<image>'], [A, B], 'inline'),
    (
      parts({'type': 'image_url', 'image_url': {'url': 'b.png'}}, IMAGE | {'url': 'a.png'}, TEXT),
      ['<image><image>What?'],
      [B, A],
      'inline',
    ),
    (  # Every message has its own image.
      {
        'messages': [
          {'role': 'user', 'content': 'x', 'image': 'a.png'},
          {'role': 'assistant', 'content': 'y'},
          {'role': 'user', 'content': 'z', 'images': ['b.png']},
          {'role': 'assistant', 'content': 'w'},
        ]
      },
      ['<image>x', '<image>z'],
      [A, B],
      'inline',
    ),
    (
      llava('<video>\nWhat?', video='a.mp4', frames=3),
      ['<image><image><image>What?'],
      [Media('a.mp4', 3)],
      'loose',
    ),
    (llava(video='a.mp4'), ['What?'], [Media('a.mp4', conversations.FRAMES)], 'text'),
    (llava(video='A.GIF', frames=3), ['What?'], [Media('A.GIF', 3)], 'text'),
    (
      llava('<image> or <video>?', image='a.png', videos=['b.mp4'], frames=2),
      ['<image> or <image><image>?'],
      [A, Media('b.mp4', 2)],
      'loose',
    ),
    (
      llava('<video> or <image>?', image='a.png', videos=['b.mp4'], frames=2),
      ['<image><image> or <image>?'],
      [Media('b.mp4', 2), A],
      'loose',
    ),
    (
      llava('<image>\nWhat?', video='b.mp4'),
      ['<image>' * 8 + 'What?'],
      [Media('b.mp4', 8)],
      'loose',
    ),
    (
      parts({'type': 'video', 'video': 'a.mp4', 'frames': 2}, TEXT),
      ['<image><image>What?'],
      [Media('a.mp4', 2)],
      'inline',
    ),
  ],
)
def test_images_stand_at_their_marks(item, questions, media, marks):
  turns, *rest = read(item)
  assert [question for question, _ in turns] == questions
  assert rest == [media, marks]


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
    (llava('<image>Or <image>?', image='a.png'), 'image marks', '<image> twice'),
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
    (
      messages(('user', 'x'), ('assistant', [{'type': 'image'}, TEXT]), images=['a.png']),
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
    (llava(audio='a.mp3'), 'unsupported media', '"audio"'),
    (
      llava('<image><image><image>?', images=['a.png', 'b.png']),
      'image marks',
      '2 images and 3 <image> marks',
    ),
    (llava('<image>?', images=['a.png', 'b.png']), 'image marks', '2 images and 1 <image> marks'),
    (llava('<image>?<img>b</img>'), 'image marks', '1 images and 2'),
    (llava('<video>?'), 'missing image', 'a question has <image>'),
    (llava(video='a.mp4', frames=0), 'not a conversation', '"frames" is 0'),
    (llava(video='a.mp4', frames='many'), 'not a conversation', "'many'"),
    (llava(frames=['a.png', 'b.png']), 'unknown image key', '"frames"'),
    (parts({'type': 'audio', 'audio': 'a.mp3'}, TEXT), 'unsupported media', 'a.mp3'),
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
  assert read(llava(image_width=3, image_size=[4, 5], id='a.png', image_source=None)) == (
    QA,
    [],
    'text',
  )
  assert read(llava('a.png', '<image>b.png', weight=0)) == ((('a.png', 'b.png'),), [], 'text')


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
      turns, media, marks = read(item)
    except BadExample as error:
      assert len(error.message) < 400
    else:
      assert turns and all(answer and answer != 'nan' for _, answer in turns)
      places = sum(question.count('<image>') for question, _ in turns if question)
      assert places == (0 if marks == 'text' else sum(each.frames or 1 for each in media))


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
    assert source[index].images[0] == (tmp_path / 'a.png').read_bytes()
  for line, message in (
    (4, '.*nan'),
    (5, "'gone.png': No such file"),
    (6, '.*a URL'),
    (7, "'data:"),
  ):
    with pytest.raises(BadExample, match=f'my.jsonl:{line}: {message}'):
      source[line - 1]
