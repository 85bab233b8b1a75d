"""The datasets of the pod configs as published files or prepared, with a few examples each."""

import json
import tarfile
from pathlib import Path

from sphinx_jax.preparation import plan, runners, verify
from tests.datasets import box_trees, image_files, question_trees as trees
from tests.datasets.box_trees import dump

IMAGES = {i: f'{i:012d}.jpg' for i in (1, 2, 3)}
QUESTIONS = [trees.Asked(10 * i + n, i, f'Is it {n}?') for i in IMAGES for n in range(2)]
KEYPOINTS = [number for i in range(17) for number in (5 + i, 5 + i, 2)]


def write(root: Path) -> Path:
  """Writes all datasets under `root`, the data_dir of a run."""
  _coco(root / 'coco')
  for tree, folder in (
    (trees.vqav2, 'coco'),
    (trees.okvqa, 'coco'),
    (trees.aokvqa, 'coco'),
    (trees.gqa, 'gqa'),
    (trees.ocrvqa, 'ocrvqa'),
  ):
    place = tree(root / folder, QUESTIONS)
    for i in IMAGES:
      image_files.write(place(i))
  for kind in ('questions', 'annotations'):
    # The held-out split of VQAv2 is a copy of the training split here.
    name = f'v2_{"OpenEnded_" if kind == "questions" else ""}mscoco_{{}}_{kind}.json'
    train = root / 'coco' / name.format('train2014')
    (root / 'coco' / name.format('val2014')).write_bytes(train.read_bytes())
  for i in IMAGES:
    image_files.write(root / f'coco/val2014/COCO_val2014_{i:012d}.jpg')
  file = root / 'ocrvqa/dataset.json'
  books = json.loads(file.read_text())
  dump(file, books | {'5': books['001'] | {'split': 2}})
  image_files.write(root / 'ocrvqa/images/5.jpg')
  dump(
    root / 'textvqa/TextCaps_0.1_train.json',
    {
      'data': [
        {
          'image_id': 'ab',
          'caption_id': i,
          'caption_str': f'Sign {i}',
          'reference_strs': ['Sign'],
          'set_name': 'train',
        }
        for i in range(3)
      ]
    },
  )
  image_files.write(root / 'textvqa/train_images/ab.jpg')
  _regions(root)
  _words(root)
  return root


def _coco(root: Path) -> None:
  for split in ('train2017', 'val2017'):
    boxes = lambda **more: [box_trees.box(i, 1 + i % 2, [2 * i, 3, 20, 15], **more) for i in IMAGES]
    box_trees.coco(root, 'instances', split, IMAGES, boxes(), ('cat', 'dog'))
    box_trees.coco(
      root,
      'person_keypoints',
      split,
      IMAGES,
      boxes(keypoints=KEYPOINTS, num_keypoints=17),
      ('person', 'person'),
    )
    box_trees.coco(
      root, 'captions', split, IMAGES, [{'image_id': i, 'caption': f'Cat {i}.'} for i in IMAGES]
    )
  box_trees.lvis(
    root,
    'train',
    {i: (f'train2017/{name}', [2], []) for i, name in IMAGES.items()},
    [box_trees.box(i, 1, [1, 2, 10, 10]) for i in IMAGES],
    ('cat', 'dog'),
  )


def _regions(root: Path) -> None:
  for name, by in (('refcoco', 'unc'), ('refcoco+', 'unc'), ('refcocog', 'umd')):
    refs = [
      box_trees.reference(i, i, i, f'cat {i}', f'the cat {i}', split='val' if i == 3 else 'train')
      for i in IMAGES
    ]
    box_trees.refcoco(
      root / 'refcoco',
      name,
      refs,
      IMAGES,
      [box_trees.box(i, 1, [2, 3, 20, 15]) for i in IMAGES],
      ('cat',),
      by,
    )
  thing = lambda i, name, x: {'object_id': i, 'names': [name], 'x': x, 'y': 3, 'w': 9, 'h': 12}
  box_trees.visual_genome(
    root / 'visual_genome',
    {i: 'VG_100K' for i in (1, 2, 20)},
    region_descriptions=[
      {
        'id': i,
        'regions': [{'region_id': i, 'phrase': 'a cat', 'x': 2, 'y': 3, 'width': 9, 'height': 9}],
      }
      for i in (1, 2, 20)
    ],
    relationships=[
      {
        'image_id': i,
        'relationships': [
          {
            'relationship_id': i,
            'predicate': 'on',
            'subject': thing(1, 'cat', 2),
            'object': thing(2, 'mat', 15),
          }
        ],
      }
      for i in (1, 2, 20)
    ],
    question_answers=[
      {'id': i, 'qas': [{'qa_id': i, 'question': 'What is it?', 'answer': 'A cat.'}]}
      for i in (1, 2, 20)
    ],
  )
  for split, first in (('train', 1), ('val', 5)):
    ids = range(first, first + 3)
    box_trees.flickr30k(
      root / 'flickr30k_entities',
      split,
      {i: ['[/EN#7/animals A cat] sits .'] for i in ids},
      {i: [(['7'], [2, 3, 20, 15])] for i in ids},
    )
    box_trees.doclaynet(
      root / 'doclaynet',
      split,
      {i: f'{split}{i}.png' for i in ids},
      [box_trees.box(i, 1, [100, 100, 300, 200]) for i in ids],
      ('Text', 'Title'),
    )


def _words(root: Path) -> None:
  turns = [{'from': 'human', 'value': 'What is it?'}, {'from': 'gpt', 'value': 'A cat.'}]
  dump(
    root / 'llava/llava_v1_5_mix665k.json',
    [
      {'id': str(i), 'image': f'coco/train2017/{name}', 'conversations': turns}
      for i, name in IMAGES.items()
    ],
  )
  for name in IMAGES.values():
    image_files.write(root / f'llava/coco/train2017/{name}')
  dump(
    root / 'sharegpt/ShareGPT_V3_unfiltered_cleaned_split.json',
    [{'id': str(i), 'conversations': turns} for i in IMAGES],
  )
  dump(root / 'raw/text/some.txt', 'A sentence of a document.\n' * 9)
  _build('plain_text', root / 'raw/text', root / 'refinedweb')
  for domain in ('laion400m', 'laion_coco', 'laion400m_heldout', 'laion_coco_heldout'):
    (root / 'raw' / domain).mkdir()
    with tarfile.open(root / 'raw' / domain / '00000.tar', 'w') as tar:
      for i in range(6):
        for suffix, data in (
          ('jpg', image_files.encoded(seed=i)),
          ('txt', f'{domain} {i}'.encode()),
        ):
          (root / 'raw/member').write_bytes(data)
          tar.add(root / 'raw/member', f'{i:09d}.{suffix}')
    _build('laion', root / 'raw' / domain, root / domain)


def _build(source: str, root: Path, output: Path) -> None:
  build = plan.make_build(source, str(root), str(output))
  shards = plan.plan_shards(build)
  assert verify.claim(build, shards) is None
  runners.run_local(build, shards, 1)
  verify.finish(build, shards)
