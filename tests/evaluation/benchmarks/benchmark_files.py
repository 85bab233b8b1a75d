"""Writes small files of the benchmarks."""

import base64
import csv
import json
from pathlib import Path

from sphinx_jax.configs import benchmarks
from sphinx_jax.evaluation.benchmarks.benchmark import Benchmark, open_benchmark

ANNOTATIONS = Path(__file__).parents[2] / 'golden/annotations'
CONFIG = json.loads((ANNOTATIONS / 'annotation_config.json').read_text())


def opened(name: str, root: Path) -> Benchmark:
  """A benchmark of the table."""
  return open_benchmark(name, benchmarks.get_config()[name], root)


def file(root: Path, path: str, value) -> Path:
  """Writes JSON, or a text or bytes as they are, and creates the parent directories."""
  place = root / path
  place.parent.mkdir(parents=True, exist_ok=True)
  data = (
    value
    if isinstance(value, bytes)
    else (value if isinstance(value, str) else json.dumps(value)).encode()
  )
  place.write_bytes(data)
  return place


def annotations(root: Path) -> None:
  """Links root/annotations to the first 60 lines of each official annotation file."""
  root.mkdir(parents=True, exist_ok=True)
  (root / 'annotations').symlink_to(ANNOTATIONS)


def annotators(root: Path) -> None:
  """Writes the datasets' files of all annotators' answers.

  The answers are copies of the most common one in the annotation files.
  """
  for name, path in (
    ('okvqa_val', 'okvqa/mscoco_val2014_annotations.json'),
    ('textvqa_val', 'textvqa/textvqa_val_annotations.json'),
    ('vizwiz_val', 'vizwiz/vizwiz_val_annotations.json'),
  ):
    file(
      root,
      f'data/{path}',
      {
        'annotations': [
          {
            'question_id': row['question_id'],
            'answers': [{'answer': row['gt_answers'], 'answer_id': i} for i in range(10)],
          }
          for row in rows(name)
        ]
      },
    )
  file(
    root,
    'data/docvqa/val/val_v1.0.json',
    {
      'data': [
        {'questionId': row['question_id'], 'answers': [row['gt_answers'], 'another spelling']}
        for row in rows('docvqa_val')
      ]
    },
  )


def rows(name: str) -> list[dict]:
  """The entries of one annotation file."""
  return json.loads((ANNOTATIONS / f'{name}.json').read_text())


def mmbench(
  root: Path, lines: list[dict], path: str = 'data/mmbench/mmbench_dev_20230712.tsv'
) -> None:
  """Writes a tab-separated file. A missing 'image' is made from the index."""
  place = file(root, path, '')
  names = [
    'index',
    'question',
    'hint',
    'A',
    'B',
    'C',
    'D',
    'answer',
    'category',
    'l2-category',
    'split',
    'image',
  ]
  with place.open('w', newline='') as out:
    writer = csv.DictWriter(out, names, delimiter='\t')
    writer.writeheader()
    for line in lines:
      image = base64.b64encode(
        b'picture %d of some length, as a real one has; ' % line['index'] * 3
      ).decode()
      writer.writerow(
        {'image': image, 'category': 'finding', 'l2-category': 'perception', 'split': 'dev', **line}
      )


def instances() -> dict:
  """Two images: a cat and a crowd of dogs, and nothing."""
  return {
    'images': [
      {'id': 139, 'file_name': '000000000139.jpg', 'width': 640, 'height': 480},
      {'id': 7, 'file_name': '000000000007.jpg', 'width': 300, 'height': 400},
    ],
    'categories': [{'id': 18, 'name': 'dog'}, {'id': 17, 'name': 'cat'}],
    'annotations': [
      {
        'id': 1,
        'image_id': 139,
        'category_id': 17,
        'bbox': [100, 100, 200, 200],
        'area': 31000.5,
        'iscrowd': 0,
      },
      {
        'id': 2,
        'image_id': 139,
        'category_id': 18,
        'bbox': [0, 0, 50, 60],
        'area': 900,
        'iscrowd': 1,
      },
    ],
  }


def keypoints() -> dict:
  """One image with two people to ask about, one person without keypoints, and a crowd."""

  def person(number, x, shown, crowd=0):
    points = [
      value
      for i in range(17)
      for value in ((x + 5 * i, 100 + 11 * i, 2) if i < shown else (0, 0, 0))
    ]
    return {
      'id': number,
      'image_id': 139,
      'category_id': 1,
      'bbox': [x, 90, 120, 210],
      'area': 20000,
      'iscrowd': crowd,
      'keypoints': points,
      'num_keypoints': shown,
    }

  return {
    **instances(),
    'annotations': [
      person(11, 20, 17),
      person(12, 200, 9),
      person(13, 400, 0),
      person(14, 500, 0, 1),
    ],
  }
