"""LLaVA and ShareGPT, and a data_config of such files."""

import json
import random

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.record import BadExample, Source
from tests.datasets import image_files


def make_conversation(*pairs):
  return [{'from': who, 'value': value} for who, value in pairs]


def llava(name, image, *more):
  item = {
    'id': name,
    'conversations': make_conversation(
      ('human', f'{"<image>" if image else ""}\nWas ist das? 🚌'), ('gpt', 'Ein Bus – groß.'), *more
    ),
  }
  return item | ({'image': image} if image is not None else {})


def write(root, name, items):
  root.mkdir(parents=True, exist_ok=True)
  (root / name).write_text(
    json.dumps(items) if name.endswith('.json') else '\n'.join(map(json.dumps, items))
  )


def opened(tmp_path, source, **more):
  return sources.open_source(dict(source=source, root='root', **more), tmp_path)


def reason(source, index):
  with pytest.raises(BadExample) as caught:
    source[index]
  return caught.value.reason


def test_llava_1_5_with_images_of_several_datasets(tmp_path):
  root = tmp_path / 'root'
  image_files.write(root / 'coco/train2017/000000033471.jpg')
  image_files.write(root / 'vg/VG_100K_2/1.jpg', mode='CMYK')
  image_files.write(root / 'textvqa/train_images/ä.jpg', mode='L')
  image_files.write(root / 'gqa/images/cut.jpg', image_files.truncated())
  image_files.write(root / 'gqa/images/empty.jpg', b'')
  bus = llava('000000033471', 'coco/train2017/000000033471.jpg', ('human', 'Farbe?'), ('gpt', 7))
  write(
    root,
    'llava_v1_5_mix665k.json',
    [
      bus,
      bus,
      llava('000000033471', None),
      llava(5, 'vg/VG_100K_2/1.jpg'),
      llava('t', 'textvqa/train_images/ä.jpg'),
      llava('c', 'gqa/images/cut.jpg'),
      llava('e', 'gqa/images/empty.jpg'),
      llava('n', 'ocr_vqa/images/none.jpg'),
      llava('d', 'coco'),
      llava('x', ['coco']),
      {'id': 'q', 'conversations': make_conversation(('human', 'Only a question'))},
      None,
    ],
  )
  source = opened(tmp_path, 'llava')
  assert isinstance(source, Source) and len(source) == 11
  assert source[0].turns == (('<image>Was ist das? 🚌', 'Ein Bus – groß.'), ('Farbe?', '7'))
  assert (
    source[0].images[0] == (root / 'coco/train2017/000000033471.jpg').read_bytes()
    and source[0].task == 'dialog'
  )
  assert [source[i].id for i in range(5)] == ['000000033471', '000000033471#2', '5', 't', 'c']
  assert not source[1].images and source[1].turns[0][0] == 'Was ist das? 🚌'
  assert [reason(source, i) for i in range(5, 11)] == [
    'empty image',
    'missing image',
    'missing image',
    'missing image',
    'empty answer',
    'not a conversation',
  ]


def test_llava_with_several_images(tmp_path):
  root = tmp_path / 'root'
  for seed, name in enumerate('ab'):
    image_files.write(root / f'd/{name}.jpg', seed=seed)
  item = llava('1', ['d/b.jpg', 'd/a.jpg'])
  item['conversations'][0]['value'] = '<image> or\n<image>'
  write(root, 'mine.jsonl', [item])
  record = opened(tmp_path, 'llava', file='mine.jsonl')[0]
  assert record.images == tuple((root / f'd/{name}.jpg').read_bytes() for name in 'ba')
  assert record.turns[0][0] == '<image> or<image>' and record.marks == 'loose'


def test_the_older_llava_files_name_images_of_coco(tmp_path):
  root = tmp_path / 'root'
  image_files.write(root / 'train2017/000000000009.jpg')
  image_files.write(root / 'mine/000000000009.jpg', seed=1)
  write(root, 'llava_instruct_150k.json', [llava('9', '000000000009.jpg')])
  write(root, 'mine.jsonl', [llava('9', '000000000009.jpg')])
  assert (
    opened(tmp_path, 'llava')[0].images[0] == (root / 'train2017/000000000009.jpg').read_bytes()
  )
  assert (
    opened(tmp_path, 'llava', file='mine.jsonl', images='mine')[0].images[0]
    == (root / 'mine/000000000009.jpg').read_bytes()
  )


@pytest.mark.parametrize(
  'conversation, turns',
  [
    (
      [('human', 'Hi'), ('gpt', 'Hello'), ('human', '<b>2+2?</b>'), ('gpt', '<div>4</div>')],
      (('Hi', 'Hello'), ('<b>2+2?</b>', '<div>4</div>')),
    ),
    (
      [
        ('user', 'a'),
        ('chatgpt', 'b'),
        ('User', 'c'),
        ('assistant', 'd'),
        ('human', 'e'),
        ('bing', 'f'),
      ],
      (('a', 'b'), ('c', 'd'), ('e', 'f')),
    ),
    ([('gpt', 'Go on.'), ('human', 'x'), ('gpt', 'y')], ((None, 'Go on.'), ('x', 'y'))),
    ([('system', 'Be kind.'), ('human', 'x'), ('gpt', 'y')], (('Be kind.\nx', 'y'),)),
    (
      [('human', 'a'), ('human', 'b'), ('gpt', 'c'), ('gpt', 'd'), ('human', 'last')],
      (('a\nb', 'c\nd'),),
    ),
    ([('human', 'a'), ('gpt', ''), ('human', ' '), ('gpt', 'd')], (('a', 'd'),)),
  ],
)
def test_sharegpt_says_what_becomes_of_odd_dialogs(tmp_path, conversation, turns):
  write(
    tmp_path / 'root',
    'sharegpt.json',
    [{'id': 'QWJhYvA_0', 'conversations': make_conversation(*conversation)}],
  )
  record = opened(tmp_path, 'sharegpt')[0]
  assert record.turns == turns and not record.images and record.id == 'QWJhYvA_0'


@pytest.mark.parametrize(
  'item, expected',
  [
    ({'conversations': make_conversation(('human', 'a'))}, 'empty answer'),
    ({'conversations': []}, 'empty answer'),
    ({'conversations': make_conversation(('human', 'a'), ('gpt', ' '))}, 'empty answer'),
    ({'conversations': make_conversation(('function_call', 'a'), ('gpt', 'b'))}, 'unknown speaker'),
    ({'conversations': make_conversation(('human', None), ('gpt', 'b'))}, 'not a conversation'),
    ({'conversations': {'from': 'human'}}, 'not a conversation'),
    ({'items': []}, 'not a conversation'),
    (7, 'not a conversation'),
  ],
)
def test_sharegpt_names_what_is_wrong(tmp_path, item, expected):
  good = {'id': 'g', 'conversations': make_conversation(('human', 'a'), ('gpt', 'b'))}
  write(tmp_path / 'root', 'sharegpt.jsonl', [item, good])
  source = opened(tmp_path, 'sharegpt')
  assert reason(source, 0) == expected and source[1].turns == (('a', 'b'),)


def test_missing_and_empty_files_are_named(tmp_path):
  (tmp_path / 'root').mkdir()
  with pytest.raises(SphinxError, match='none of llava_v1_5_mix665k.json'):
    opened(tmp_path, 'llava')
  (tmp_path / 'root/sharegpt.json').write_text('[]')
  with pytest.raises(SphinxError, match='sharegpt.json.*empty'):
    opened(tmp_path, 'sharegpt')


def config(tmp_path, text):
  (tmp_path / 'data.yaml').write_text(text)
  return dict(source='data_config', path='data.yaml')


def test_a_data_config_is_one_source_of_all_its_files(tmp_path):
  image_files.write(tmp_path / 'images/a.jpg')
  write(
    tmp_path,
    'text.jsonl',
    [{'conversations': make_conversation(('human', str(i)), ('gpt', 'b'))} for i in range(20)],
  )
  write(tmp_path, 'pictures.json', [llava('1', 'a.jpg'), llava('2', 'gone.jpg')])
  entry = config(
    tmp_path,
    """
META:
  - path: 'text.jsonl'
    type: 'text'
    ratio: 0.3
  - {path: pictures.json, type: image_text, root: images}
  - {path: text.jsonl, type: text}
""",
  )
  source = sources.open_source(entry, tmp_path)
  assert isinstance(source, Source) and len(source) == 6 + 20 + 2
  random.seed(0)
  official = random.sample([str(i) for i in range(20)], int(20 * 0.3))
  assert [source[i].turns[0][0] for i in range(26)] == official + [str(i) for i in range(20)]
  assert (
    source[26].images[0] == (tmp_path / 'images/a.jpg').read_bytes() and source[26].task == 'dialog'
  )
  assert reason(source, 27) == 'missing image'
  only = sources.open_source(
    entry | dict(type='image_text', task='chat', too_long='cut_text'), tmp_path
  )
  assert len(only) == 2 and only[0].task == 'chat' and only.too_long == 'cut_text'
  assert len(list(sources.open_source(entry | dict(type='text'), tmp_path))) == 26
  with pytest.raises(SphinxError, match="did you mean 'image_text'"):
    sources.open_source(entry | dict(type='image_txt'), tmp_path)


@pytest.mark.parametrize(
  'text, message',
  [
    ('META: [', 'data.yaml.*expected a YAML file'),
    ('- !!python/object/apply:os.system [echo]', 'data.yaml.*expected a YAML file'),
    ('META: []', 'a list META'),
    ('other: 1', 'a list META'),
    ('META: [{type: x}]', 'entry 1.*mapping with path'),
    ('META: [{path: text.jsonl}, {path: text.jsonl, rato: 1}]', "entry 2.*did you mean 'ratio'"),
    ('META: [{path: text.jsonl, ratio: half}]', "entry 1: ratio: got 'half'"),
    ('META: [{path: text.jsonl, ratio: 2}]', 'entry 1: ratio: got 2, expected a share'),
    ('META: [{path: text.jsonl, ratio: 0.001}]', 'at least one item'),
    ('META: [{path: gone.jsonl}]', 'gone.jsonl.*no such file'),
  ],
)
def test_errors_of_a_data_config_name_file_and_entry(tmp_path, text, message):
  write(
    tmp_path, 'text.jsonl', [{'conversations': make_conversation(('human', 'a'), ('gpt', 'b'))}]
  )
  with pytest.raises(SphinxError, match=message):
    sources.open_source(config(tmp_path, text), tmp_path)
