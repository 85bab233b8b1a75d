"""Writes miniworld as the dataset files of public datasets.

With them, the readers of these datasets run from bytes to scores on a laptop. There is one function
for each dataset; its reader (sphinx_jax/datasets) describes the directory tree. `write` makes them
all:

    coco/                    captions, instances, person keypoints, VQAv2 questions, images of 2014
    refcoco/
    visual_genome/           and visual_genome_val/
    flickr30k_entities/
    ocrvqa/
    doclaynet/
    llava_train.json
    text/
    laion/real/, laion/synthetic/    webdataset tar files of captions
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
from sphinx_jax.data import geometry
from sphinx_jax.miniworld import corpus, pages
from sphinx_jax.miniworld.reader import StoredScenes
from sphinx_jax.miniworld.scene import KINDS
from sphinx_jax.tasks import ocr, task as task_lib, vqa

SPLITS = {'train': 'train', 'test': 'val'}  # Split of miniworld -> its name in most datasets.
_MAX_QUESTIONS = 4  # About one image.
_FIRST_CATEGORY = 1  # COCO's number of the class person.
_TAR_SIZE = 1000  # Captions in a tar file.


class Scene(NamedTuple):
  """A scene of miniworld, ready to be written.

  Attributes:
    number: unique over all splits.
    jpeg: the encoded image.
    size: edge of the image in pixels.
    annotation: the scene's annotation, with boxes and keypoints in pixels.
  """

  number: int
  jpeg: bytes
  size: int
  annotation: dict[str, Any]


def write(data_dir: str | Path, output: str | Path) -> Path:
  """Writes the dataset files of the miniworld that was built in `data_dir`.

  Running it again writes the same files.

  Returns:
    `output`.
  """
  output = Path(output)
  for split in ('train', 'validation', 'test'):
    scenes = list(_read_scenes(data_dir, split))
    if split in SPLITS:
      for write_dataset in Progress(DATASETS, what=f'dataset files of {split}', unit='datasets'):
        write_dataset(scenes, split, output)
    if split != 'test':  # The captions of stage 1 are validated on the validation split alone.
      _laion(scenes, split, output / 'laion')
  return output


def _read_scenes(data_dir: str | Path, split: str) -> Iterator[Scene]:
  first = 1
  if split in SPLITS:
    first += 1_000_000 * list(SPLITS).index(split)
  for number, stored in enumerate(StoredScenes(data_dir, split, KINDS), first):
    image = Image.open(io.BytesIO(stored.image)).convert('RGB')
    jpeg = io.BytesIO()
    # Words of a few pixels must stay readable.
    image.save(jpeg, 'JPEG', quality=95, subsampling=0)
    size = image.width
    yield Scene(number, jpeg.getvalue(), size, geometry.scaled(stored.annotation, size, size))


def _in_unit_square(scene: Scene) -> dict[str, Any]:
  """Returns the objects and words of a scene with boxes in [0, 1], as tasks read them."""
  result = {}
  for name in ('objects', 'words'):
    result[name] = [
      {**thing, 'box': [number / scene.size for number in thing['box']]}
      for thing in scene.annotation[name]
    ]
  return result


def _scenes_of(kind: str, scenes: Sequence[Scene]) -> list[Scene]:
  return [scene for scene in scenes if scene.annotation['kind'] == kind]


def _rng(scene: Scene) -> np.random.Generator:
  return np.random.default_rng(scene.number)


def _write_json(path: Path, value: Any) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value))


def _write_images(scenes: Sequence[Scene], path_of: Callable[[Scene], Path]) -> None:
  for scene in scenes:
    path = path_of(scene)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(scene.jpeg)


def _xywh(box: Sequence[float]) -> list[float]:
  x1, y1, x2, y2 = box
  return [x1, y1, x2 - x1, y2 - y1]


def _coco_name(year: str, scene: Scene) -> str:
  return f'COCO_{year}_{scene.number:012d}.jpg'


def _coco_json(
  scenes: Sequence[Scene],
  file_name: Callable[[Scene], str],
  things_of: Callable[[Scene], list[dict[str, Any]]],
  categories: Sequence[str],
) -> dict[str, Any]:
  """Returns boxed things in COCO's JSON form.

  Args:
    scenes: the images.
    file_name: scene -> file name of its image.
    things_of: scene -> its things, each a dict with 'category', 'box' and any other keys of an
      annotation.
    categories: names of the categories.
  """
  category_ids = {name: i for i, name in enumerate(categories, _FIRST_CATEGORY)}
  annotations, images = [], []
  for scene in scenes:
    images.append(
      {
        'id': scene.number,
        'file_name': file_name(scene),
        'width': scene.size,
        'height': scene.size,
      }
    )
    for thing in things_of(scene):
      box = _xywh(thing.pop('box'))
      annotations.append(
        {
          'id': len(annotations) + 1,
          'image_id': scene.number,
          'category_id': category_ids[thing.pop('category')],
          'bbox': box,
          'area': box[2] * box[3],
          'iscrowd': 0,
          **thing,
        }
      )
  return {
    'images': images,
    'annotations': annotations,
    'categories': [{'id': i, 'name': name} for name, i in category_ids.items()],
  }


def _named_boxes(scene: Scene) -> list[dict[str, Any]]:
  """The objects of a scene as things of `_coco_json`."""
  return [{'category': item['name'], 'box': item['box']} for item in scene.annotation['objects']]


def _posed_people(scene: Scene) -> list[dict[str, Any]]:
  """The people of a scene as things of `_coco_json`."""
  people = []
  for person in scene.annotation['people']:
    points = person['keypoints']
    people.append(
      {
        'category': 'person',
        'box': person['box'],
        'keypoints': [number for point in points for number in point],
        'num_keypoints': sum(seen > 0 for _, _, seen in points),
      }
    )
  return people


def coco(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Captions of all images, instances of objects and keypoints of figures, as in 2014."""
  root, year = output / 'coco', f'{SPLITS[split]}2014'

  def file_name(scene: Scene) -> str:
    return _coco_name(year, scene)

  _write_images(scenes, lambda scene: root / year / file_name(scene))
  captions = _coco_json(scenes, file_name, lambda scene: [], ())
  captions['annotations'] = [
    {'id': scene.number, 'image_id': scene.number, 'caption': scene.annotation['caption_synthetic']}
    for scene in scenes
  ]
  _write_json(root / f'annotations/captions_{year}.json', captions)

  things = _scenes_of('objects', scenes)
  classes = sorted({item['name'] for scene in things for item in scene.annotation['objects']})
  instances = _coco_json(things, file_name, _named_boxes, classes)
  _write_json(root / f'annotations/instances_{year}.json', instances)

  people = _coco_json(_scenes_of('figure', scenes), file_name, _posed_people, ('person',))
  names = [point.replace(' ', '_') for point in coordinates.KEYPOINTS]
  people['categories'][0]['keypoints'] = names
  _write_json(root / f'annotations/person_keypoints_{year}.json', people)


def vqav2(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Questions about objects, with ten equal annotators each. The images are those of `coco`."""
  year, questions, annotations = f'{SPLITS[split]}2014', [], []
  for scene in _scenes_of('objects', scenes):
    asked = vqa.scene_questions(_in_unit_square(scene)['objects'], _rng(scene))
    for n, (question, answer) in enumerate(asked[:_MAX_QUESTIONS]):
      ids = {'image_id': scene.number, 'question_id': scene.number * 1000 + n}
      questions.append(ids | {'question': question})
      answers = [
        {'answer': answer, 'answer_confidence': 'yes', 'answer_id': i} for i in range(1, 11)
      ]
      annotations.append(
        ids
        | {
          'multiple_choice_answer': answer,
          'question_type': '',
          'answer_type': 'other',
          'answers': answers,
        }
      )
  root = output / 'coco'
  _write_json(
    root / f'v2_OpenEnded_mscoco_{year}_questions.json',
    {'questions': questions, 'data_subtype': year},
  )
  _write_json(
    root / f'v2_mscoco_{year}_annotations.json',
    {'annotations': annotations, 'data_subtype': year},
  )


def refcoco(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """References to the objects that one expression tells from all others.

  All images are of train2014, as in the original. Both splits are in one file, so the second one is
  added to the first.
  """
  root = output / 'refcoco'
  things = _scenes_of('objects', scenes)

  def file_name(scene: Scene) -> str:
    return _coco_name('train2014', scene)

  _write_images(things, lambda scene: root / 'train2014' / file_name(scene))
  instances_file, refs_file = root / 'refcoco/instances.json', root / 'refcoco/refs(unc).p'
  earlier, refs = {'images': [], 'annotations': []}, []
  if split != 'train':
    earlier = json.loads(instances_file.read_text())
    refs = pickle.loads(refs_file.read_bytes())
  categories = {item['name'] for scene in things for item in scene.annotation['objects']}
  categories |= {category['name'] for category in earlier.get('categories', ())}
  instances = _coco_json(things, file_name, _named_boxes, sorted(categories))
  annotations = iter(instances['annotations'])
  for scene in things:
    phrases = [task_lib.expression(item) for item in scene.annotation['objects']]
    counts = Counter(phrases)
    for phrase in phrases:
      annotation = next(annotations)
      annotation['id'] += len(earlier['annotations'])
      if counts[phrase] > 1:
        continue
      number = len(refs)
      refs.append(
        {
          'ref_id': number,
          'ann_id': annotation['id'],
          'image_id': scene.number,
          'file_name': file_name(scene),
          'category_id': annotation['category_id'],
          'split': 'train' if split == 'train' else 'testA',
          'sent_ids': [number],
          'sentences': [
            {'sent_id': number, 'sent': phrase, 'raw': phrase, 'tokens': phrase.split()}
          ],
        }
      )
  for key in ('images', 'annotations'):
    instances[key] = earlier[key] + instances[key]
  _write_json(instances_file, instances)
  refs_file.write_bytes(pickle.dumps(refs, protocol=2))


def visual_genome(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Spatial relations between objects of different names, in both directions.

  Held-out images are in a tree of their own.
  """
  root = output / ('visual_genome' if split == 'train' else 'visual_genome_val')
  things = _scenes_of('objects', scenes)
  _write_images(things, lambda scene: root / f'VG_100K/{scene.number}.jpg')
  all_relations, image_data = [], []
  for scene in things:
    all_relations.append({'image_id': scene.number, 'relationships': _relations(scene)})
    image_data.append(
      {
        'image_id': scene.number,
        'width': scene.size,
        'height': scene.size,
        'url': f'VG_100K/{scene.number}.jpg',
      }
    )
  _write_json(root / 'relationships.json', all_relations)
  _write_json(root / 'image_data.json', image_data)


def _relations(scene: Scene) -> list[dict[str, Any]]:
  items = []
  for i, item in enumerate(scene.annotation['objects']):
    x, y, w, h = _xywh(item['box'])
    name = task_lib.expression(item)
    items.append(
      {'object_id': scene.number * 100 + i, 'names': [name], 'x': x, 'y': y, 'w': w, 'h': h}
    )
  relations = []
  objects = _in_unit_square(scene)['objects']
  for i, subject in enumerate(objects):
    for j, other in enumerate(objects):
      if i == j or items[i]['names'] == items[j]['names']:
        continue
      predicate = task_lib.direction(subject, other)
      if predicate:
        relations.append(
          {
            'relationship_id': scene.number * 10_000 + i * 100 + j,
            'predicate': predicate,
            'subject': items[i],
            'object': items[j],
          }
        )
  return relations


def flickr30k_entities(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """One sentence per image that names every object from left to right, with boxes as XML."""
  root, things = output / 'flickr30k_entities', _scenes_of('objects', scenes)
  _write_images(things, lambda scene: root / f'flickr30k-images/{scene.number}.jpg')
  for directory in ('Sentences', 'Annotations'):
    (root / directory).mkdir(exist_ok=True)
  for scene in things:
    items = sorted(scene.annotation['objects'], key=lambda item: item['box'][0] + item['box'][2])
    phrases = []
    for i, item in enumerate(items, 1):
      article, _, words = task_lib.with_article(task_lib.expression(item)).partition(' ')
      phrases.append(f'{article} [/EN#{i}/other {words}]')
    sentence = phrases[-1]
    if len(phrases) > 1:
      sentence = ' , '.join(phrases[:-1]) + ' and ' + sentence
    (root / f'Sentences/{scene.number}.txt').write_text(f'{sentence} .\n')
    boxes = [item['box'] for item in items]
    (root / f'Annotations/{scene.number}.xml').write_bytes(_flickr_xml(scene.size, boxes))
  list_file = root / ('train.txt' if split == 'train' else 'test.txt')
  list_file.write_text(''.join(f'{scene.number}\n' for scene in things))


def _flickr_xml(size: int, boxes: Sequence[Sequence[float]]) -> bytes:
  tree = ElementTree.Element('annotation')
  size_element = ElementTree.SubElement(tree, 'size')
  for tag, value in (('width', size), ('height', size), ('depth', 3)):
    ElementTree.SubElement(size_element, tag).text = str(value)
  for i, box in enumerate(boxes, 1):
    element = ElementTree.SubElement(tree, 'object')
    ElementTree.SubElement(element, 'name').text = str(i)
    box_element = ElementTree.SubElement(element, 'bndbox')
    for tag, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box):
      # The first pixel has the number 1.
      ElementTree.SubElement(box_element, tag).text = str(round(value) + 1)
  return ElementTree.tostring(tree)


def ocrvqa(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Questions that read a word. One dataset.json holds all splits (1: train, 3: test)."""
  root, things = output / 'ocrvqa', _scenes_of('words', scenes)
  file = root / 'dataset.json'
  dataset = json.loads(file.read_text()) if split != 'train' else {}
  _write_images(things, lambda scene: root / f'images/{scene.number}.jpg')
  for scene in things:
    asked = ocr.scene_questions(_in_unit_square(scene)['words'], _rng(scene))[:_MAX_QUESTIONS]
    if not asked:
      continue
    dataset[str(scene.number)] = {
      'imageURL': f'http://images.example/{scene.number}.jpg',
      'questions': [question for question, _ in asked],
      'answers': [answer for _, answer in asked],
      'split': 1 if split == 'train' else 3,
      'title': '',
      'authorName': '',
      'genre': '',
    }
  _write_json(file, dataset)


def doclaynet(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Blocks of pages."""
  root, things = output / 'doclaynet', _scenes_of('page', scenes)

  def file_name(scene: Scene) -> str:
    return f'{scene.number:064x}.png'

  def blocks(scene: Scene) -> list[dict[str, Any]]:
    return [{'category': item['label'], 'box': item['box']} for item in scene.annotation['blocks']]

  _write_images(things, lambda scene: root / 'PNG' / file_name(scene))
  name = 'train' if split == 'train' else 'test'
  _write_json(root / f'COCO/{name}.json', _coco_json(things, file_name, blocks, pages.LABELS))


def llava(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Dialogs of several questions about an image of `coco`."""
  dialogs, year = [], f'{SPLITS[split]}2014'
  for scene in _scenes_of('objects', scenes):
    asked = vqa.scene_questions(_in_unit_square(scene)['objects'], _rng(scene))
    turns = []
    for question, answer in asked[:_MAX_QUESTIONS]:
      turns.append({'from': 'human', 'value': question})
      turns.append({'from': 'gpt', 'value': answer})
    if not turns:
      continue
    turns[0]['value'] = f'<image>\n{turns[0]["value"]}'
    dialogs.append(
      {
        'id': str(scene.number),
        'image': f'coco/{year}/{_coco_name(year, scene)}',
        'conversations': turns,
      }
    )
  _write_json(output / f'llava_{split}.json', dialogs)


def text(scenes: Sequence[Scene], split: str, output: Path) -> None:
  """Sentences, one per line."""
  path = output / f'text/{split}/sentences.txt'
  path.parent.mkdir(parents=True, exist_ok=True)
  count = max(len(scenes) // 3, 1)
  path.write_text('\n'.join(corpus.texts(split, count, seed=0)) + '\n')


def _laion(scenes: Sequence[Scene], split: str, root: Path) -> None:
  """Captions of both domains as tar files of img2dataset: KEY.jpg, KEY.txt, KEY.json."""
  for domain in ('real', 'synthetic'):
    directory = root / domain / split
    directory.mkdir(parents=True, exist_ok=True)
    for number, begin in enumerate(range(0, len(scenes), _TAR_SIZE)):
      with tarfile.open(directory / f'{number:05d}.tar', 'w') as tar:
        for n, scene in enumerate(scenes[begin : begin + _TAR_SIZE]):
          key, caption = f'{number:05d}{n:04d}', scene.annotation[f'caption_{domain}']
          info = {
            'key': key,
            'caption': caption,
            'status': 'success',
            'width': scene.size,
            'height': scene.size,
          }
          _add_member(tar, f'{key}.jpg', scene.jpeg)
          _add_member(tar, f'{key}.txt', caption.encode())
          _add_member(tar, f'{key}.json', json.dumps(info).encode())


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
  member = tarfile.TarInfo(name)
  member.size = len(data)
  tar.addfile(member, io.BytesIO(data))


DATASETS = (
  coco,
  vqav2,
  refcoco,
  visual_genome,
  flickr30k_entities,
  ocrvqa,
  doclaynet,
  llava,
  text,
)
