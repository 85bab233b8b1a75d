"""Writes small trees of datasets with boxes and captions. The tests add what is malformed."""

import json
import pickle
from pathlib import Path

from tests.datasets import image_files


def dump(path: Path, value) -> Path:
  """Writes JSON, or a text as it is, and creates the parent directories."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(value if isinstance(value, str) else json.dumps(value))
  return path


def coco_json(images, annotations, names=()) -> dict:
  """COCO's JSON.

  Args:
    images: {id: file name}, of 40 x 30 pixels.
    annotations: dicts.
    names: names of the categories 1, 2, ...
  """
  entries = [
    {'id': i, 'file_name': name, 'width': 40, 'height': 30, 'license': 3}
    for i, name in images.items()
  ]
  for number, annotation in enumerate(annotations, 1):
    if isinstance(annotation, dict):
      annotation.setdefault('id', number)
  return {
    'info': {},
    'images': entries,
    'annotations': annotations,
    'categories': [{'id': i, 'name': name, 'supercategory': ''} for i, name in enumerate(names, 1)],
  }


def box(image, category, xywh, crowd=0, **more) -> dict:
  """An annotation of instances. Like all of them it has a polygon."""
  return {
    'image_id': image,
    'category_id': category,
    'bbox': xywh,
    'iscrowd': crowd,
    'area': 1.5,
    'segmentation': [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
    **more,
  }


def coco(root, kind, split, images, annotations, names=(), folder=None) -> Path:
  """Writes COCO.

  Args:
    root: root of the dataset.
    kind: 'captions', 'instances' or 'person_keypoints'.
    split: the split.
    images: {id: file name}.
    annotations: dicts.
    names: names of the categories.
    folder: directory of the images, by default that of the split.
  """
  dump(root / f'annotations/{kind}_{split}.json', coco_json(images, annotations, names))
  for name in images.values():
    image_files.write(root / (folder or split) / name)
  return root


def lvis(root, split, images, annotations, names) -> Path:
  """Writes LVIS; images: {id: (folder/name, absent category ids, not exhaustive ones)}."""
  value = coco_json({i: '' for i in images}, annotations, names)
  for entry, (place, absent, partial) in zip(value['images'], images.values()):
    del entry['file_name']
    entry |= {
      'coco_url': f'http://images.cocodataset.org/{place}',
      'neg_category_ids': absent,
      'not_exhaustive_category_ids': partial,
    }
    image_files.write(root / place)
  dump(root / f'lvis_v1_{split}.json', value)
  return root


def doclaynet(root, split, images, annotations, names) -> Path:
  """Writes DocLayNet; images: {id: name}. The files are smaller than the annotated 1025 x 1025."""
  value = coco_json(images, annotations, names)
  for entry in value['images']:
    entry |= {'width': 1025, 'height': 1025, 'doc_category': 'laws', 'page_no': 1, 'precedence': 0}
    image_files.write(root / 'PNG' / entry['file_name'], width=41, height=41, form='PNG')
  dump(root / f'COCO/{split}.json', value)
  return root


def reference(ref_id, annotation, image, *sentences, split='train') -> dict:
  """A ref of the pickle. Its sentences have the ids 10 * ref_id, 10 * ref_id + 1, ..."""
  return {
    'ref_id': ref_id,
    'ann_id': annotation,
    'image_id': image,
    'split': split,
    'category_id': 1,
    'file_name': f'COCO_train2014_{image:012d}_{ref_id}.jpg',
    'sent_ids': [10 * ref_id + i for i in range(len(sentences))],
    'sentences': [
      {'sent_id': 10 * ref_id + i, 'sent': sent, 'raw': sent.upper(), 'tokens': sent.split()}
      for i, sent in enumerate(sentences)
    ],
  }


def refcoco(
  root,
  name,
  refs,
  images,
  annotations,
  names,
  by='unc',
  folder='images/mscoco/images/train2014',
  protocol=0,
) -> Path:
  """Writes RefCOCO.

  Args:
    root: root of the dataset.
    name: 'refcoco', 'refcoco+' or 'refcocog'.
    refs: of `reference`.
    images: ids.
    annotations: dicts.
    names: names of the categories.
    by: author of the split.
    folder: directory of the images.
    protocol: protocol of the pickle, by default one of Python 2.
  """
  files = {i: f'COCO_train2014_{i:012d}.jpg' for i in images}
  dump(root / name / 'instances.json', coco_json(files, annotations, names))
  (root / name / f'refs({by}).p').write_bytes(pickle.dumps(refs, protocol=protocol))
  for file in files.values():
    image_files.write(root / folder / file)
  return root


def visual_genome(root, images, **files) -> Path:
  """Writes Visual Genome.

  Args:
    root: root of the dataset.
    images: {id: folder}, 'VG_100K' or 'VG_100K_2'.
    files: name -> rows, for example region_descriptions=[...].
  """
  dump(
    root / 'image_data.json',
    [
      {
        'image_id': i,
        'width': 40,
        'height': 30,
        'coco_id': None,
        'url': f'https://cs.stanford.edu/people/rak248/{folder}/{i}.jpg',
      }
      for i, folder in images.items()
    ],
  )
  for i, folder in images.items():
    image_files.write(root / folder / f'{i}.jpg')
  for name, rows in files.items():
    dump(root / f'{name}.json', rows)
  return root


def flickr30k(root, split, sentences, objects) -> Path:
  """Writes Flickr30k Entities.

  Args:
    root: root of the dataset.
    split: the split.
    sentences: {image: [marked sentence, ...]}.
    objects: {image: [(names, box or 'nobndbox' or 'scene'), ...]}.
  """
  dump(root / f'{split}.txt', ''.join(f'{image}\n' for image in sentences))
  for image, lines in sentences.items():
    dump(root / f'Sentences/{image}.txt', '\n'.join(lines) + '\n')
    image_files.write(root / f'flickr30k-images/{image}.jpg')
    dump(root / f'Annotations/{image}.xml', _xml(image, objects.get(image, ())))
  return root


def _xml(image, objects) -> str:
  parts = []
  for names, place in objects:
    if isinstance(place, str):
      inside = (
        f'<scene>{int(place == "scene")}</scene><nobndbox>{int(place == "nobndbox")}</nobndbox>'
      )
    else:
      sides = zip(('xmin', 'ymin', 'xmax', 'ymax'), place)
      inside = '<bndbox>' + ''.join(f'<{tag}>{value}</{tag}>' for tag, value in sides) + '</bndbox>'
    parts.append(
      '<object>' + ''.join(f'<name>{name}</name>' for name in names) + inside + '</object>'
    )
  return (
    f'<annotation><filename>{image}.jpg</filename>'
    '<size><width>40</width><height>30</height><depth>3</depth></size>'
    f'{"".join(parts)}</annotation>'
  )
