"""Small trees of every dataset family, for the fuzz test to damage.

TREES is name -> (function that writes the tree, mixture entries that open it).
"""

import functools

from sphinx_jax.preparation import plan, runners, verify
from tests.datasets import box_trees, image_files, question_trees
from tests.datasets.test_dialogs import llava, make_conversation, write
from tests.datasets.test_flickr30k_entities import MARKED, OBJECTS
from tests.datasets.test_laion import ROWS, parquet, tar
from tests.datasets.test_refcoco import REFS, things
from tests.datasets.test_text import document, web
from tests.datasets.test_visual_genome import asking, region, regions, relation, thing

NAMES = ('person', 'dog', 'traffic light')
MODES = ('RGB', 'L', 'CMYK')


def coco(root):
  images = {i: f'{i:012d}.jpg' for i in range(4)}
  boxes = [box_trees.box(i, 1 + i % 3, [4 * i, 2, 12, 9], crowd=i % 2) for i in range(4)]
  people = [
    box_trees.box(i, 1, [1, 1, 20, 20], keypoints=[5, 6, 2] * 17, num_keypoints=17)
    for i in range(4)
  ]
  box_trees.coco(root, 'instances', 'train2017', images, boxes, NAMES)
  box_trees.coco(
    root,
    'captions',
    'train2017',
    images,
    [{'image_id': i, 'caption': f'A café, {i}.'} for i in images],
  )
  box_trees.coco(root, 'person_keypoints', 'train2017', images, people, ('person',))
  for i, mode in enumerate(MODES):
    image_files.write(root / 'train2017' / images[i], mode=mode)


def lvis(root):
  places = {i: (f'train2017/{i:012d}.jpg', [3], [2]) for i in (1, 2, 3)}
  boxes = [box_trees.box(i, 1 + i % 2, [1, 2, 12, 9]) for i in places]
  box_trees.lvis(root, 'train', places, boxes, ('bow_(weapon)', 'cup', 'stop_sign'))


def doclaynet(root):
  boxes = [box_trees.box(i, 2, [9, 9, 500, 99]) for i in (1, 2)]
  box_trees.doclaynet(root, 'train', {1: 'a.png', 2: 'b.png'}, boxes, ('Text', 'Title'))


def refcoco(root):
  box_trees.refcoco(root, 'refcoco', REFS[:2], (7, 8), things(), NAMES)


def visual_genome(root):
  box_trees.visual_genome(
    root,
    {1: 'VG_100K_2', 20: 'VG_100K'},
    region_descriptions=[regions([region(i, f'a cat {i}') for i in range(3)])],
    relationships=[
      {
        'image_id': 20,
        'relationships': [
          relation(1, thing(1, 'hat', (1, 1, 9, 9)), 'ON', thing(2, 'man', (2, 9, 20, 20)))
        ],
      }
    ],
    question_answers=[{'id': 1, 'qas': [asking(5, 'What is it?', 'A cat.')]}],
  )


def flickr30k(root):
  box_trees.flickr30k(
    root, 'train', {'36979': MARKED, '2': MARKED[:1]}, {'36979': OBJECTS, '2': OBJECTS}
  )


def textcaps(root):
  question_trees.dump(
    root / 'TextCaps_0.1_train.json',
    {
      'data': [
        {
          'image_id': 'ab',
          'caption_id': i,
          'caption_str': f'A sign {i}',
          'reference_strs': ['A sign'],
          'set_name': 'train',
        }
        for i in range(3)
      ]
    },
  )
  image_files.write(root / 'train_images/ab.jpg')


def questions(name, root):
  asked = [question_trees.Asked(i, i, f'Is it {i}?', ('yes', 'no')[i % 2]) for i in (1, 2, 3)]
  root.mkdir(parents=True, exist_ok=True)
  place = question_trees.TREES[name](root, asked)
  for i in (1, 2, 3):
    image_files.write(place(i), mode=MODES[i - 1])


def llava_tree(root):
  write(
    root,
    'llava_v1_5_mix665k.json',
    [llava(str(i), f'coco/{i}.jpg') for i in range(3)] + [llava('t', None)],
  )
  for i, mode in enumerate(MODES):
    image_files.write(root / f'coco/{i}.jpg', mode=mode)


def sharegpt(root):
  write(
    root,
    'sharegpt.jsonl',
    [
      {
        'id': i,
        'conversations': make_conversation(
          ('human', 'Hi'),
          ('gpt', '<p>Hey 🌳'),
          ('system', 's'),
        ),
      }
      for i in range(4)
    ],
  )


def laion(root):
  for i in range(2):
    tar(root, f'0000{i}.tar')


def laion_parquet(root):
  parquet(root, rows=ROWS)


def refinedweb(root):
  web(root, [document(0, 400), 'Käse 🧀'], [document(1, 30)])


def plain_text(root):
  root.mkdir(parents=True)
  (root / 'a.txt').write_text('Größe\n\nzwei 🌳 drei\n' * 5)


def array_record(root):
  coco(root.with_name('whole'))
  build = plan.make_build(
    'coco', str(root.with_name('whole')), str(root), 'train2017', 'detection', shard_size=2
  )
  shards = plan.plan_shards(build)
  if verify.claim(build, shards) is None:
    runners.run_local(build, shards, 1)
    verify.finish(build, shards)


def jsonl(root):
  write(root, 'mine.jsonl', [llava(str(i), f'{i}.jpg') for i in range(3)])
  write(root, 'mine.json', [llava(str(i), f'{i}.jpg') for i in range(3)])
  (root / 'data.yaml').write_text(
    'META:\n- {path: root/mine.json, type: a, root: root, ratio: 0.7}\n'
    '- {path: root/mine.jsonl, root: root}\n'
  )
  for i in range(3):
    image_files.write(root / f'{i}.jpg')


def _tasks(source, *tasks, **more):
  return [dict(source=source, task=task, max_turns=3, **more) for task in tasks]


TREES = {
  'coco': (coco, _tasks('coco', 'caption', 'detection', 'counting', 'pose')),
  'lvis': (lvis, _tasks('lvis', 'detection', 'counting')),
  'doclaynet': (doclaynet, _tasks('doclaynet', 'layout')),
  'refcoco': (refcoco, _tasks('refcoco', 'rec', 'reg')),
  'visual_genome': (
    visual_genome,
    _tasks('visual_genome', 'rec', 'reg', 'relation', 'vqa', split='all'),
  ),
  'flickr30k_entities': (flickr30k, _tasks('flickr30k_entities', 'grounded_caption', 'caption')),
  'textcaps': (textcaps, _tasks('textcaps', 'caption')),
  **{
    name: (functools.partial(questions, name), [dict(source=name, max_turns=3)])
    for name in question_trees.TREES
  },
  'llava': (llava_tree, _tasks('llava', 'dialog')),
  'sharegpt': (sharegpt, _tasks('sharegpt', 'dialog')),
  'laion': (laion, _tasks('laion', 'caption') + _tasks('laion', 'caption', caption='top_caption')),
  'laion_parquet': (laion_parquet, _tasks('laion_parquet', 'caption')),
  'refinedweb': (refinedweb, _tasks('refinedweb', 'text', words=50)),
  'plain_text': (
    plain_text,
    _tasks('plain_text', 'text') + _tasks('plain_text', 'text', document='paragraph'),
  ),
  'array_record': (array_record, _tasks('array_record', 'detection')),
  'jsonl': (
    jsonl,
    [
      dict(source='jsonl', path='root/mine.jsonl'),
      dict(source='jsonl', path='root/mine.json'),
      dict(source='data_config', path='root/data.yaml'),
    ],
  ),
}
