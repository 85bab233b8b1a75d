"""Official files in COCO's form: objects (COCO, DocLayNet), people, captions (COCO, nocaps, and Karpathy's split).

    root/data/coco/annotations/instances_val2017.json, person_keypoints_val2017.json, captions_val2017.json
    root/data/coco/val2017/000000000139.jpg
    root/data/coco/dataset_coco.json                Karpathy's split of COCO 2014; pictures in train2014, val2014
    root/data/doclaynet/COCO/test.json, PNG/*.png
    root/data/nocaps/nocaps_val_4500_captions.json, val/*.jpg

https://cocodataset.org (annotations CC BY 4.0), https://github.com/DS4SD/DocLayNet (CDLA-Permissive-1.0),
https://cs.stanford.edu/people/karpathy/deepimagesent (split), https://nocaps.org (CC BY 2.0).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sphinx_jax.core import boxes, coordinates
from sphinx_jax.datasets import files
from sphinx_jax.datasets.fields import group_by
from sphinx_jax.evaluation.benchmarks.benchmark import Question, field, rows


def read_objects(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """One question for every picture of the file, those with nothing in them too. Raises SphinxError for a wrong file."""
  path = files.find(name, root, file)
  value = files.read_json(name, path, dict)
  names = {
    field(name, row, 'id', path): field(name, row, 'name', path)
    for row in rows(name, value, 'categories', path)
  }
  questions = []
  for picture, found in _pictures(name, value, path):
    objects = [
      {
        'name': names.get(field(name, row, 'category_id', path), ''),
        'bbox': field(name, row, 'bbox', path),
        'area': field(name, row, 'area', path),
        'iscrowd': row.get('iscrowd', 0),
      }
      for row in found
    ]
    entry = _entry(name, picture, images, path) | {'objects': objects}
    questions.append(
      Question(str(entry['image_id']), root / entry['image_path'], prompt.format(''), entry)
    )
  return questions


def read_people(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """One question for every person with a keypoint, pointed out by the file's box. Raises SphinxError for a wrong file."""
  path = files.find(name, root, file)
  questions = []
  for picture, found in _pictures(name, files.read_json(name, path, dict), path):
    people = [
      {
        key: field(name, row, key, path)
        for key in ('id', 'bbox', 'area', 'keypoints', 'num_keypoints')
      }
      | {'iscrowd': row.get('iscrowd', 0)}
      for row in found
    ]
    asked = [person for person in people if person['num_keypoints'] and not person['iscrowd']]
    others = [person for person in people if person not in asked]
    for person in asked:
      entry = _entry(name, picture, images, path) | {'person': person, 'others': others}
      box = boxes.pad_box(boxes.corners(person['bbox']), entry['width'], entry['height'])
      who = f'the person in {coordinates.format_box(box)}'
      questions.append(
        Question(str(person['id']), root / entry['image_path'], prompt.format(who), entry)
      )
      others = []
  return questions


def read_captions(name: str, root: Path, prompt: str, file: str, images: str) -> list[Question]:
  """One question for every captioned picture, with all its captions as the truth. Raises SphinxError for a wrong file."""
  path = files.find(name, root, file)
  questions = []
  for picture, found in _pictures(name, files.read_json(name, path, dict), path):
    truth = [field(name, row, 'caption', path) for row in found]
    place = f'{images}/{field(name, picture, "file_name", path)}'
    entry = {'image_id': picture['id'], 'image_path': place, 'gt_answers': truth}
    if truth:
      questions.append(
        Question(str(picture['id']), root / entry['image_path'], prompt.format(''), entry)
      )
  return questions


def read_karpathy(
  name: str, root: Path, prompt: str, file: str, images: str, split: str
) -> list[Question]:
  """The same of one split of Karpathy's file; a picture lies in images/<filepath>. Raises SphinxError for a wrong file."""
  path = files.find(name, root, file)
  questions = []
  for row in rows(name, files.read_json(name, path, dict), 'images', path):
    if field(name, row, 'split', path) == split:
      key, folder, picture = (
        field(name, row, part, path) for part in ('cocoid', 'filepath', 'filename')
      )
      truth = [
        field(name, sentence, 'raw', path) for sentence in rows(name, row, 'sentences', path)
      ]
      entry = {'image_id': key, 'image_path': f'{images}/{folder}/{picture}', 'gt_answers': truth}
      questions.append(Question(str(key), root / entry['image_path'], prompt.format(''), entry))
  return questions


def _pictures(
  name: str, value: dict, path: Path
) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
  """Every picture of a file with its annotations."""
  groups = group_by(
    rows(name, value, 'annotations', path), lambda row: field(name, row, 'image_id', path)
  )
  found = {group[0]['image_id']: group for group in groups}
  for picture in rows(name, value, 'images', path):
    yield picture, found.get(field(name, picture, 'id', path), [])


def _entry(name, picture, images, path):
  file, width, height = (
    field(name, picture, key, path) for key in ('file_name', 'width', 'height')
  )
  return {
    'image_id': picture['id'],
    'image_path': f'{images}/{file}',
    'width': width,
    'height': height,
  }
