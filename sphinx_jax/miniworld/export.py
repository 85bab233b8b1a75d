"""Writes miniworld as the files of official datasets, so that their readers can be run from bytes to scores on a laptop.

One function a layout; the sources (datasets) say what each tree looks like. `write` makes them all:

    coco/           captions, instances, person keypoints, VQAv2 questions, pictures of 2014
    refcoco/  visual_genome/  flickr30k_entities/  ocrvqa/  doclaynet/  llava_train.json  text/
    laion/real  laion/synthetic   webdataset tars of captions
"""

import io
import json
import pickle
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from sphinx_jax.core import coordinates
from sphinx_jax.core.progress import Progress
from sphinx_jax.datasets.miniworld import Miniworld
from sphinx_jax.miniworld import corpus, pages
from sphinx_jax.tasks import ocr, task as base, vqa

SPLITS = {'train': 'train', 'test': 'val'}  # of miniworld -> as most datasets name them
_QUESTIONS = 4  # about a picture
_PERSON = 1  # COCO's number of the class


class Scene(NamedTuple):
  """A picture of miniworld. number: unique over splits, jpeg: its bytes, size: pixels a side, annotation: boxes in pixels."""

  number: int
  jpeg: bytes
  size: int
  annotation: dict


def write(data_dir: str | Path, output: str | Path) -> Path:
  """Writes all layouts of the built miniworld in `data_dir`; the same command again writes the same files.

  Returns:
    `output`.
  """
  output = Path(output)
  for split in ('train', 'validation', 'test'):
    scenes = list(_scenes(data_dir, split))
    if split in SPLITS:
      for layout in Progress(LAYOUTS, what=f'official layouts of {split}', unit='layouts'):
        layout(scenes, split, output)
    if split != 'test':  # Captions of stage 1 are watched on the validation split alone.
      _laion(scenes, split, output / 'laion')
  return output


def _scenes(data_dir: str | Path, split: str) -> Iterator[Scene]:
  source = Miniworld('caption', data_dir, split)
  first = 1 + 1_000_000 * list(SPLITS).index(split) if split in SPLITS else 1
  for index in range(len(source)):
    png, annotation = source.scene(index)
    picture = Image.open(io.BytesIO(png)).convert('RGB')
    side, out = picture.width, io.BytesIO()
    picture.save(
      out, 'JPEG', quality=95, subsampling=0
    )  # Words of a few pixels must stay readable.
    for things in (annotation[name] for name in ('objects', 'words', 'blocks', 'people')):
      for thing in things:
        thing['box'] = [number * side for number in thing['box']]
        thing['keypoints'] = [
          [x * side, y * side, seen] for x, y, seen in thing.get('keypoints', ())
        ]
    yield Scene(first + index, out.getvalue(), side, annotation)


def _of(kind: str, scenes: Sequence[Scene]) -> list[Scene]:
  return [scene for scene in scenes if scene.annotation['kind'] == kind]


def _dump(path: Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def _pictures(scenes: Sequence[Scene], place: Callable[[Scene], Path]) -> None:
  for scene in scenes:
    path = place(scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scene.jpeg)


def _xywh(box: Sequence[float]) -> list[float]:
  x1, y1, x2, y2 = box
  return [x1, y1, x2 - x1, y2 - y1]


def _coco_json(
  scenes: Sequence[Scene],
  file_name: Callable[[Scene], str],
  things: Callable[[Scene], list[dict]],
  categories: Sequence[str],
) -> dict:
  """The COCO form of boxed things: each a dict with 'category', 'box', and what else an annotation has."""
  number = {name: i for i, name in enumerate(categories, _PERSON)}
  annotations = []
  for scene in scenes:
    for thing in things(scene):
      box = _xywh(thing.pop('box'))
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': scene.number,
          'category_id': number[thing.pop('category')],
          'bbox': box,
          'area': box[2] * box[3],
          'iscrowd': 0,
          **thing,
        }
      )
  images = [
    {'id': scene.number, 'file_name': file_name(scene), 'width': scene.size, 'height': scene.size}
    for scene in scenes
  ]
  return {
    'images': images,
    'annotations': annotations,
    'categories': [{'id': i, 'name': name} for name, i in number.items()],
  }


def coco(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Captions of all pictures, instances of objects, keypoints of figures, in the layout of 2014."""
  root, year = output / 'coco', f'{SPLITS[split]}2014'
  name = lambda scene: f'COCO_{year}_{scene.number:012d}.jpg'
  _pictures(scenes, lambda scene: root / year / name(scene))
  whole = _coco_json(scenes, name, lambda scene: [], ())
  whole['annotations'] = [
    {'id': scene.number, 'image_id': scene.number, 'caption': scene.annotation['caption_synthetic']}
    for scene in scenes
  ]
  _dump(root / f'annotations/captions_{year}.json', whole)

  def objects(scene: Scene) -> list[dict]:
    return [
      {'category': thing['name'], 'box': thing['box']} for thing in scene.annotation['objects']
    ]

  def people(scene: Scene) -> list[dict]:
    return [
      {
        'category': 'person',
        'box': person['box'],
        'keypoints': [number for point in person['keypoints'] for number in point],
        'num_keypoints': sum(seen > 0 for *_, seen in person['keypoints']),
      }
      for person in scene.annotation['people']
    ]

  things = _of('objects', scenes)
  classes = sorted({thing['name'] for scene in things for thing in scene.annotation['objects']})
  _dump(root / f'annotations/instances_{year}.json', _coco_json(things, name, objects, classes))
  posed = _coco_json(_of('figure', scenes), name, people, ('person',))
  posed['categories'][0]['keypoints'] = [point.replace(' ', '_') for point in coordinates.KEYPOINTS]
  _dump(root / f'annotations/person_keypoints_{year}.json', posed)


def vqav2(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Questions about objects, ten equal annotators each; the pictures are those of `coco`."""
  year, questions, annotations = f'{SPLITS[split]}2014', [], []
  for scene in _of('objects', scenes):
    on_square = _normal(scene)
    for n, (question, answer) in enumerate(
      vqa.scene_questions(on_square['objects'], _rng(scene))[:_QUESTIONS]
    ):
      about = {'image_id': scene.number, 'question_id': scene.number * 1000 + n}
      questions.append(about | {'question': question})
      annotations.append(
        about
        | {
          'multiple_choice_answer': answer,
          'question_type': '',
          'answer_type': 'other',
          'answers': [
            {'answer': answer, 'answer_confidence': 'yes', 'answer_id': i} for i in range(1, 11)
          ],
        }
      )
  _dump(
    output / f'coco/v2_OpenEnded_mscoco_{year}_questions.json',
    {'questions': questions, 'data_subtype': year},
  )
  _dump(
    output / f'coco/v2_mscoco_{year}_annotations.json',
    {'annotations': annotations, 'data_subtype': year},
  )


def refcoco(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Refs of the objects that one expression tells from all others; all pictures are of train2014, as they are there."""
  root = output / 'refcoco'
  things = _of('objects', scenes)
  name = lambda scene: f'COCO_train2014_{scene.number:012d}.jpg'
  _pictures(things, lambda scene: root / 'train2014' / name(scene))
  file, refs_file = root / 'refcoco/instances.json', root / 'refcoco/refs(unc).p'
  before = json.loads(file.read_text()) if split != 'train' else {'images': [], 'annotations': []}
  refs = pickle.loads(refs_file.read_bytes()) if split != 'train' else []
  categories = sorted(
    {item['name'] for scene in things for item in scene.annotation['objects']}
    | {category['name'] for category in before.get('categories', ())}
  )
  objects = lambda scene: [
    {'category': item['name'], 'box': item['box']} for item in scene.annotation['objects']
  ]
  made = _coco_json(things, name, objects, categories)
  ids = iter(made['annotations'])
  for scene in things:
    names = Counter(base.expression(item) for item in scene.annotation['objects'])
    for item in scene.annotation['objects']:
      annotation = next(ids)
      annotation['id'] += len(before['annotations'])
      phrase = base.expression(item)
      if names[phrase] == 1:
        refs.append(
          {
            'ref_id': len(refs),
            'ann_id': annotation['id'],
            'image_id': scene.number,
            'file_name': name(scene),
            'category_id': annotation['category_id'],
            'split': 'train' if split == 'train' else 'testA',
            'sent_ids': [len(refs)],
            'sentences': [
              {'sent_id': len(refs), 'sent': phrase, 'raw': phrase, 'tokens': phrase.split()}
            ],
          }
        )
  made['images'], made['annotations'] = (
    before['images'] + made['images'],
    before['annotations'] + made['annotations'],
  )
  _dump(file, made)
  refs_file.write_bytes(pickle.dumps(refs, protocol=2))


def visual_genome(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Relations of place between objects of different names, in either order; held-out pictures lie in a tree of their own."""
  root = output / ('visual_genome' if split == 'train' else 'visual_genome_val')
  things = _of('objects', scenes)
  _pictures(things, lambda scene: root / f'VG_100K/{scene.number}.jpg')
  relations = []
  for scene in things:
    items = [
      {
        'object_id': scene.number * 100 + i,
        'names': [base.expression(item)],
        **dict(zip('xywh', _xywh(item['box']))),
      }
      for i, item in enumerate(scene.annotation['objects'])
    ]
    boxes = _normal(scene)['objects']
    found = [
      {
        'relationship_id': scene.number * 10_000 + i * 100 + j,
        'predicate': predicate,
        'subject': items[i],
        'object': items[j],
      }
      for i, a in enumerate(boxes)
      for j, b in enumerate(boxes)
      if i != j and items[i]['names'] != items[j]['names'] and (predicate := base.direction(a, b))
    ]
    relations.append({'image_id': scene.number, 'relationships': found})
  _dump(root / 'relationships.json', relations)
  _dump(
    root / 'image_data.json',
    [
      {
        'image_id': scene.number,
        'width': scene.size,
        'height': scene.size,
        'url': f'VG_100K/{scene.number}.jpg',
      }
      for scene in things
    ],
  )


def flickr30k_entities(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """A sentence a picture that names every object from left to right, and its boxes as XML."""
  root, things = output / 'flickr30k_entities', _of('objects', scenes)
  _pictures(things, lambda scene: root / f'flickr30k-images/{scene.number}.jpg')
  for folder in ('Sentences', 'Annotations'):
    (root / folder).mkdir(exist_ok=True)
  for scene in things:
    items = sorted(scene.annotation['objects'], key=lambda item: item['box'][0] + item['box'][2])
    tree = ElementTree.Element('annotation')
    size = ElementTree.SubElement(tree, 'size')
    for tag, value in (('width', scene.size), ('height', scene.size), ('depth', 3)):
      ElementTree.SubElement(size, tag).text = str(value)
    phrases = []
    for i, item in enumerate(items, 1):
      article, _, words = base.with_article(base.expression(item)).partition(' ')
      phrases.append(f'{article} [/EN#{i}/other {words}]')
      thing = ElementTree.SubElement(tree, 'object')
      ElementTree.SubElement(thing, 'name').text = str(i)
      box = ElementTree.SubElement(thing, 'bndbox')
      for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), item['box']):
        ElementTree.SubElement(box, tag).text = str(
          round(value) + 1
        )  # Its first pixel has number 1.
    sentence = ' and '.join(
      [' , '.join(phrases[:-1]), phrases[-1]] if len(phrases) > 1 else phrases
    )
    (root / f'Sentences/{scene.number}.txt').write_text(f'{sentence} .\n')
    (root / f'Annotations/{scene.number}.xml').write_bytes(ElementTree.tostring(tree))
  (root / ('train.txt' if split == 'train' else 'test.txt')).write_text(
    ''.join(f'{scene.number}\n' for scene in things)
  )


def ocrvqa(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Questions that read a word; one dataset.json for all splits (1: train, 3: test)."""
  root, things = output / 'ocrvqa', _of('words', scenes)
  file = root / 'dataset.json'
  dataset = json.loads(file.read_text()) if split != 'train' else {}
  _pictures(things, lambda scene: root / f'images/{scene.number}.jpg')
  for scene in things:
    if asked := ocr.scene_questions(_normal(scene)['words'], _rng(scene)):
      questions, answers = zip(*asked[:_QUESTIONS])
      dataset[str(scene.number)] = {
        'imageURL': f'http://images.example/{scene.number}.jpg',
        'questions': questions,
        'answers': answers,
        'split': 1 if split == 'train' else 3,
        'title': '',
        'authorName': '',
        'genre': '',
      }
  _dump(file, dataset)


def doclaynet(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Blocks of pages."""
  name = lambda scene: f'{scene.number:064x}.png'
  things = _of('page', scenes)
  _pictures(things, lambda scene: output / 'doclaynet/PNG' / name(scene))
  blocks = lambda scene: [
    {'category': block['label'], 'box': block['box']} for block in scene.annotation['blocks']
  ]
  _dump(
    output / f'doclaynet/COCO/{"train" if split == "train" else "test"}.json',
    _coco_json(things, name, blocks, pages.LABELS),
  )


def llava(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Dialogs of several questions about a picture of `coco`."""
  dialogs = []
  for scene in _of('objects', scenes):
    said = vqa.scene_questions(_normal(scene)['objects'], _rng(scene))[:_QUESTIONS]
    turns = [
      {'from': who, 'value': text} for turn in said for who, text in zip(('human', 'gpt'), turn)
    ]
    if turns:
      turns[0]['value'] = f'<image>\n{turns[0]["value"]}'
      year = f'{SPLITS[split]}2014'
      dialogs.append(
        {
          'id': str(scene.number),
          'image': f'coco/{year}/COCO_{year}_{scene.number:012d}.jpg',
          'conversations': turns,
        }
      )
  _dump(output / f'llava_{split}.json', dialogs)


def text(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Sentences, one a line."""
  path = output / f'text/{split}/sentences.txt'
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text('\n'.join(corpus.texts(split, max(len(scenes) // 3, 1), 0)) + '\n')


def _laion(scenes: Sequence[Scene], split: str, root: Path) -> None:
  """Captions of both domains as tars of img2dataset: key.jpg, key.txt, key.json."""
  for domain in ('real', 'synthetic'):
    folder = root / domain / split
    folder.mkdir(parents=True, exist_ok=True)
    for begin in range(0, len(scenes), 1000):
      with tarfile.open(folder / f'{begin // 1000:05d}.tar', 'w') as tar:
        for n, scene in enumerate(scenes[begin : begin + 1000]):
          key, caption = f'{begin // 1000:05d}{n:04d}', scene.annotation[f'caption_{domain}']
          meta = {
            'key': key,
            'caption': caption,
            'status': 'success',
            'width': scene.size,
            'height': scene.size,
          }
          for suffix, data in (
            ('jpg', scene.jpeg),
            ('txt', caption.encode()),
            ('json', json.dumps(meta).encode()),
          ):
            member = tarfile.TarInfo(f'{key}.{suffix}')
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def _normal(scene: Scene) -> dict:
  """The annotation with boxes in [0, 1], as tasks read it."""
  return {
    name: [
      {**thing, 'box': [number / scene.size for number in thing['box']]}
      for thing in scene.annotation[name]
    ]
    for name in ('objects', 'words')
  }


def _rng(scene: Scene) -> np.random.Generator:
  return np.random.default_rng(scene.number)


LAYOUTS = (coco, vqav2, refcoco, visual_genome, flickr30k_entities, ocrvqa, doclaynet, llava, text)
