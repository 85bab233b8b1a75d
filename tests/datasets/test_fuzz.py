"""Damaged trees of every dataset family: opening fails with an error, or all records are counted.

Each case damages one to three files of a small tree: bytes of images and of other files, values of
JSON. The records then pass the training pipeline, which decodes the images.
"""

import codecs
import copy
import dataclasses
import gzip
import json
import logging
import pathlib
import random
import shutil

import numpy as np
import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import tokenizer as tokenizers
from sphinx_jax.data.dialog import Template
from sphinx_jax.data.pipeline import Pipeline, PipelineConfig
from sphinx_jax.data.record import BadExample, Record, Source
from tests.datasets.fuzz_trees import TREES

CASES = 16  # Of each family.
TOKENIZER = tokenizers.load(pathlib.Path(__file__).parents[1] / 'golden/tokenizer.model')
BATCH = {'batch_size': 4, 'seq_len': 512, 'slots': 4, 'window': 16}
ODD = (
  None,
  True,
  -1,
  0,
  7.5,
  1e308,
  -1e-320,
  10**30,
  float('nan'),
  float('inf'),
  '',
  ' ',
  '\x00\x07\r',
  '\ud800',
  'é🌳' * 99,
  '{}[0]{x}',
  '../../../etc/passwd',
  '/',
  '.',
  [],
  {},
  [[]],
  [None],
  {'a': 1},
  ['x'] * 9,
  [1, 2, 3, 4],
  [0.0] * 51,
  [[1, 2], 3],
)


def harm_value(value, rng):
  """Changes, deletes or doubles one value of a JSON tree, or puts it in a list."""
  places = []

  def walk(inside):
    for key in inside if isinstance(inside, dict) else range(len(inside)):
      places.append((inside, key))
      if isinstance(inside[key], (dict, list)):
        walk(inside[key])

  if not isinstance(value, (dict, list)) or not value:
    return copy.deepcopy(rng.choice(ODD))
  walk(value)
  inside, key = rng.choice(places)
  kind = rng.randrange(8)
  if kind == 0:
    del inside[key]
  elif kind == 1 and isinstance(inside, list):
    inside.append(copy.deepcopy(inside[key]))
  elif kind == 2:
    inside[key] = [inside[key]]
  elif kind == 3:
    inside[key] = str(inside[key]) if not isinstance(inside[key], str) else len(inside[key])
  else:
    inside[key] = copy.deepcopy(rng.choice(ODD))
  return value


def harm_bytes(data, rng):
  data, kind = bytearray(data), rng.randrange(7)
  if kind == 0:
    return b''
  if kind == 1:
    return bytes(data[: rng.randrange(len(data) + 1)])
  if kind == 2:
    return b'[' * 100000
  if kind == 3:
    place = rng.randrange(len(data) + 1)
    return bytes(data[:place] + rng.randbytes(rng.randrange(1, 64)) + data[place:])
  for _ in range(rng.choice((1, 4, 40))):
    if data:
      data[rng.randrange(len(data))] = rng.randrange(256)
  return bytes(data)


def harm(path, rng):
  data = path.read_bytes()
  if path.suffix == '.json' and rng.random() < 0.8:
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 3, 10))):
      value = harm_value(value, rng)
    data = json.dumps(value).encode()
  elif path.suffix == '.jsonl' and rng.random() < 0.8:
    lines = data.splitlines()
    number = rng.randrange(len(lines))
    lines[number] = json.dumps(harm_value(json.loads(lines[number]), rng)).encode()
    data = b'\n'.join(lines)
  else:
    data = harm_bytes(data, rng)
  path.write_bytes(data)


class All(Source):
  """The records of many sources as one source."""

  name = 'all'

  def __init__(self, parts):
    self._places = [(part, index) for part in parts for index in range(len(part))]

  def __len__(self):
    return len(self._places)

  def __getitem__(self, index):
    part, place = self._places[index]
    return part[place]


def check(source):
  """Returns the numbers of good and bad records. Anything else fails the test."""
  good, bad = 0, 0
  for index in range(len(source)):
    try:
      record = source[index]
    except BadExample as error:
      assert (
        isinstance(error.reason, str)
        and 3 < len(error.reason) < 60
        and isinstance(error.message, str)
      )
      bad += 1
    else:
      assert (
        isinstance(record, Record)
        and isinstance(record.id, str)
        and all(isinstance(image, bytes) for image in record.images)
      )
      assert record.turns and len(record.turns) == len(record.truth)
      json.dumps(record.truth)
      good += 1
  return good, bad


@pytest.mark.parametrize('name', TREES)
def test_harmed_trees_are_told_or_counted(name, tmp_path, caplog):
  caplog.set_level(logging.CRITICAL, 'sphinx_jax')
  make, entries = TREES[name]
  make(tmp_path / 'clean/root')
  opened, refused = [], 0
  for case in range(CASES):
    rng = random.Random(f'{name} {case}')
    folder = tmp_path / str(case)
    shutil.copytree(tmp_path / 'clean', folder)
    files = sorted(path for path in (folder / 'root').rglob('*') if path.is_file())
    text_files = [path for path in files if path.suffix not in ('.jpg', '.png')]
    for path in {
      rng.choice(text_files if rng.random() < 0.6 else files) for _ in range(rng.choice((1, 1, 3)))
    }:
      harm(path, rng)
    entry = {'root': 'root'} | rng.choice(entries)
    try:
      source = sources.open_source(
        {key: value for key, value in entry.items() if key != 'root' or 'path' not in entry}
        | ({'root': str(folder / 'root')} if 'path' in entry else {}),
        folder,
      )
    except SphinxError as error:
      assert len(str(error)) < 2000
      refused += 1
      continue
    good, bad = check(source)
    assert good + bad == len(source)
    opened.append(source)
  assert len(opened) + refused == CASES and len(opened) >= CASES // 5
  records = All(opened)
  config = PipelineConfig(**BATCH, visual_tokens=5, image_size=28, max_skipped=1.0)
  pipeline = Pipeline({'all': records}, {'all': 1.0}, TOKENIZER, Template(''), config)
  seen = 0
  with pipeline.batches(examples=len(records)) as batches:
    for batch, _ in batches:
      seen += int(batch['segments'].max(axis=1).sum())
      assert np.isfinite(batch['loss_weight']).all()
  assert seen + pipeline.skipped.total() == len(records), pipeline.skipped


def change_ids(value, change):
  """A copy of a JSON tree in which ids that are whole numbers are written in another way."""
  if isinstance(value, list):
    return [change_ids(item, change) for item in value]
  if not isinstance(value, dict):
    return value
  return {
    key: change(item)
    if type(item) is int and (key in ('id', 'split', 'correctAnswer') or key.lower().endswith('id'))
    else change_ids(item, change)
    for key, item in value.items()
  }


def with_ids(change):
  def rewrite(data, lines):
    if lines:
      return b'\n'.join(
        json.dumps(change_ids(json.loads(line), change)).encode() for line in data.splitlines()
      )
    return json.dumps(change_ids(json.loads(data), change)).encode()

  return rewrite


# Other ways to write the same JSON: (data, whether they are JSON lines) -> data.
SAME = {
  'mark': lambda data, lines: codecs.BOM_UTF8 + data,
  'crlf': lambda data, lines: data.replace(b'\n', b'\r\n') + b'\r\n\r\n',
  'gzip': lambda data, lines: gzip.compress(data),
  'float ids': with_ids(float),
  'text ids': with_ids(str),
}


def contents(source):
  """Everything that is read from a source."""
  result = []
  for index in range(len(source)):
    try:
      result.append(source[index])
    except BadExample as error:
      result.append(error.reason)
  return result


@pytest.mark.parametrize('name', [name for name in TREES if name != 'array_record'])
def test_the_same_json_in_another_form_is_the_same_data(name, tmp_path):
  make, entries = TREES[name]
  make(tmp_path / 'clean/root')
  whole = {form: tmp_path / form for form in SAME}
  for form, folder in whole.items():
    shutil.copytree(tmp_path / 'clean', folder)
    for path in folder.rglob('*.json*'):
      path.write_bytes(SAME[form](path.read_bytes(), path.suffix == '.jsonl'))
  for entry in entries:
    entry = {'root': 'root'} | entry
    if 'path' in entry:
      del entry['root']
    clean = [
      record if isinstance(record, str) else dataclasses.replace(record, id='')
      for record in contents(sources.open_source(entry, tmp_path / 'clean'))
    ]
    assert any(isinstance(record, Record) for record in clean)
    for form, folder in whole.items():
      again = [
        record if isinstance(record, str) else dataclasses.replace(record, id='')
        for record in contents(sources.open_source(entry, folder))
      ]
      assert again == clean, form


def test_there_are_enough_cases():
  assert CASES * len(TREES) >= 300
