"""Files in COCO's format: objects (COCO, DocLayNet), people, and captions (COCO, nocaps, Karpathy).

    root/data/coco/annotations/instances_val2017.json, person_keypoints_val2017.json,
                               captions_val2017.json
    root/data/coco/val2017/000000000139.jpg
    root/data/coco/dataset_coco.json                Karpathy's split of COCO 2014; images in
                                                    train2014, val2014
    root/data/doclaynet/COCO/test.json, PNG/*.png
    root/data/nocaps/nocaps_val_4500_captions.json, val/*.jpg

Homepages: https://cocodataset.org (annotations CC BY 4.0), https://github.com/DS4SD/DocLayNet
(CDLA-Permissive-1.0), https://cs.stanford.edu/people/karpathy/deepimagesent (split),
https://nocaps.org (CC BY 2.0).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx_jax.core import boxes, coordinates, errors
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.coco_json import CocoJson
from sphinx_jax.evaluation.benchmarks.benchmark import PublishedFile, Question


def read_objects(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns one question for every image of the file, with or without objects."""
  published = PublishedFile.find(who, root, file)
  coco = CocoJson(who, published.path, keep=('area',), strict=True)
  questions = []
  for image, annotations in _images(coco):
    entry = _image_entry(published, image, images)
    entry['objects'] = [
      {
        'name': _category_name(published, coco, row),
        'bbox': published.required(row, 'bbox'),
        'area': published.required(row, 'area'),
        'iscrowd': row.get('iscrowd', 0),
      }
      for row in annotations
    ]
    questions.append(
      Question(str(entry['image_id']), (root / entry['image_path'],), prompt.format(''), entry)
    )
  return questions


def read_people(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns one question for every person with a keypoint. The prompt has the person's box."""
  published = PublishedFile.find(who, root, file)
  keys = ('id', 'bbox', 'area', 'keypoints', 'num_keypoints')
  questions = []
  for image, annotations in _images(CocoJson(who, published.path, keep=('area',), strict=True)):
    people = [
      {key: published.required(row, key) for key in keys} | {'iscrowd': row.get('iscrowd', 0)}
      for row in annotations
    ]
    asked = [person for person in people if person['num_keypoints'] and not person['iscrowd']]
    # The first question of an image has the people who are not asked about.
    others = [person for person in people if person not in asked]
    for person in asked:
      entry = _image_entry(published, image, images)
      entry |= {'person': person, 'others': others}
      box = boxes.pad_box(boxes.corners(person['bbox']), entry['width'], entry['height'])
      text = prompt.format(f'the person in {coordinates.format_box(box)}')
      questions.append(Question(str(person['id']), (root / entry['image_path'],), text, entry))
      others = []
  return questions


def read_captions(who: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """Returns one question for every image with captions. All its captions are the truth."""
  published = PublishedFile.find(who, root, file)
  questions = []
  for image, annotations in _images(CocoJson(who, published.path, strict=True)):
    captions = [published.text(row, 'caption') for row in annotations]
    image_path = f'{images}/{published.required(image, "file_name")}'
    if captions:
      questions.append(_caption_question(root, prompt, image['id'], image_path, captions))
  return questions


def read_karpathy(
  who: str, root: Path, prompt: str, file: str, images: str, split: str
) -> list[Question]:
  """Returns the same for a split of Karpathy's file. The images are in images/<filepath>."""
  published = PublishedFile.find(who, root, file)
  questions = []
  for row in published.rows('images'):
    if published.required(row, 'split') != split:
      continue
    image_id = published.required(row, 'cocoid')
    folder = published.required(row, 'filepath')
    image_path = f'{images}/{folder}/{published.required(row, "filename")}'
    sentences = published.required_list(row, 'sentences')
    captions = [published.text(sentence, 'raw') for sentence in sentences]
    questions.append(_caption_question(root, prompt, image_id, image_path, captions))
  return questions


def _category_name(published: PublishedFile, coco: CocoJson, row: Any) -> str:
  published.required(row, 'category_id')
  try:
    return coco.category_name(row)
  except BadExample as error:
    raise errors.make(
      published.who,
      f'{error} in {str(published.path)!r}',
      'the published file',
      'download it again',
    ) from error


def _caption_question(
  root: Path, prompt: str, image_id: int, image_path: str, captions: list[str]
) -> Question:
  entry = {'image_id': image_id, 'image_path': image_path, 'gt_answers': captions}
  return Question(str(image_id), (root / image_path,), prompt.format(''), entry)


def _images(coco: CocoJson) -> Iterator[tuple[dict[str, Any], list[Any]]]:
  """Every image of a file with its annotations."""
  for image_id, image in coco.images.items():
    yield image, coco.annotations.get(image_id, [])


def _image_entry(published: PublishedFile, image: dict[str, Any], images: str) -> dict[str, Any]:
  return {
    'image_id': image['id'],
    'image_path': f'{images}/{published.required(image, "file_name")}',
    'width': published.required(image, 'width'),
    'height': published.required(image, 'height'),
  }
