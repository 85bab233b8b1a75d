"""Writes one shard of a build as array_record that TFDS reads.

A shard is written under another name and renamed, so an interrupted build can resume. Annotations
stay in pixels. A task makes its turns from them when the records are read.
"""

import contextlib
import functools
import io
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from sphinx_jax.core import errors, files, tensorflow
from sphinx_jax.data import images
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.files import read_image
from sphinx_jax.preparation.plan import (
  PROGRESS_DIR,
  Build,
  Shard,
  open_family,
  outlines_path,
  shard_path,
)


def read_report(build: Build, shard: Shard) -> dict[str, Any] | None:
  """The report that `write_shard` returned, or None if the shard is not there as it was written."""
  try:
    report = json.loads(_report_path(build, shard).read_text())
    path = shard_path(build, shard)
    intact = path.stat().length == report['bytes']
    intact &= outlines_path(path).stat().length == report['outline_bytes']
  except (OSError, ValueError, KeyError):
    return None
  return report if intact else None


def write_shard(
  build: Build, shard: Shard, advance: Callable[[int], None] = lambda items: None
) -> dict[str, Any]:
  """Writes a shard, unless it is there already.

  Args:
    build: the build.
    shard: one of its shards.
    advance: called with the number of items that were finished.

  Returns:
    The report: {items, records, bytes, outline_bytes, skipped: {reason: number}, first: {reason:
    message of the first skipped item}, damaged: {path: reason}}.

  Raises:
    SphinxError: the family cannot be opened, or the shard cannot be written. If the shard is one
      file of many that cannot be opened, the file is reported as damaged instead.
  """
  report = read_report(build, shard)
  if report is not None:
    return report
  target, local = shard_path(build, shard), not files.is_remote(build.output)
  # A local shard is written beside its target, because only then a rename is atomic.
  with tempfile.TemporaryDirectory(
    dir=build.output if local else None, prefix=f'{PROGRESS_DIR}-'
  ) as folder:
    records, outlines = os.path.join(folder, 'shard'), os.path.join(folder, 'outlines')
    report = _write_records(build, shard, records, outlines, advance)
    report['bytes'], report['outline_bytes'] = os.path.getsize(records), os.path.getsize(outlines)
    for temporary, path in ((outlines, outlines_path(target)), (records, target)):
      if local:
        os.replace(temporary, path)
      else:
        epath.Path(temporary).copy(path, overwrite=True)
  files.write_json(_report_path(build, shard), report, indent=1)
  return report


def features() -> Any:
  """The tfds FeaturesDict of a record.

  id: text. image: the encoded file, unchanged; empty for text without an image. more_images: the
  files after the first, unchanged. annotation: JSON. size: int32[2], width and height of the first
  image in pixels; 0 without an image.
  """
  tensorflow.load()
  import numpy as np
  import tensorflow_datasets as tfds

  return tfds.features.FeaturesDict(
    {
      'id': tfds.features.Text(),
      'image': tfds.features.Image(),
      'more_images': tfds.features.Sequence(tfds.features.Text()),
      'annotation': tfds.features.Text(),
      'size': tfds.features.Tensor(shape=(2,), dtype=np.int32),
    }
  )


def _report_path(build: Build, shard: Shard) -> epath.Path:
  return epath.Path(build.output) / PROGRESS_DIR / f'{shard.number:05d}.json'


def _write_records(
  build: Build, shard: Shard, path: str, outlines_file: str, advance: Callable[[int], None]
) -> dict[str, Any]:
  """Writes records and outlines of a shard to local files; returns the report without bytes."""
  from array_record.python.array_record_module import ArrayRecordWriter

  damaged, begin, end = {}, 0, 0
  try:
    family = open_family(build, shard.settings)
    damaged = dict(family.broken)
    begin, end = shard.begin, len(family) if shard.end is None else shard.end
  except errors.SphinxError as error:
    if shard.end is not None:
      raise
    damaged = {'': str(error)}  # One file of many: the other shards are written.

  serialize = _serializer()
  with _explain_write_errors(build):
    writer = ArrayRecordWriter(path, 'group_size:1')  # TFDS and Grain read this grouping best.
    outlines = ArrayRecordWriter(outlines_file, 'group_size:1')
  records, skipped, first = 0, Counter(), {}
  for index in range(begin, end):
    try:
      item = family.item(index)
      record, sizes = _record(item)
      serialized = serialize(record)
    except BadExample as error:
      skipped[error.reason] += 1
      first.setdefault(error.reason, error.message)
    else:
      with _explain_write_errors(build):
        writer.write(serialized)
        outlines.write(_outline(record, sizes))
      records += 1
    advance(1)
  with _explain_write_errors(build):
    writer.close()
    outlines.close()
  return {
    'items': end - begin,
    'records': records,
    'skipped': dict(skipped),
    'first': first,
    'damaged': damaged,
  }


@contextlib.contextmanager
def _explain_write_errors(build: Build) -> Iterator[None]:
  """Re-raises errors of array_record, which are RuntimeErrors, with the output and the reason."""
  try:
    yield
  except RuntimeError as error:
    raise errors.write_failed(build.output, error, 'output') from error


@functools.cache
def _serializer() -> Callable[[dict[str, Any]], bytes]:
  """Returns a function that serializes a record to the same bytes in every process."""
  record_features, example = features(), tensorflow.load().train.Example

  def serialize(record: dict[str, Any]) -> bytes:
    # The features of an Example may have any order. TFDS's own serializer uses another one in every
    # process.
    data = record_features.serialize_example(record_features.encode_example(record))
    return example.FromString(data).SerializeToString(deterministic=True)

  return serialize


def _record(item: Item) -> tuple[dict[str, Any], list[tuple[int, int]]]:
  """Returns the record of an item, as in `features`, and width and height of its images.

  Images are decoded completely, so that training does not find unreadable ones.

  Raises:
    BadExample: an image cannot be read or decoded.
  """
  encoded = [read_image(item.id, image) for image in item.images]
  sizes = [images.decode(data).shape[1::-1] for data in encoded]
  record = {
    'id': item.id.encode('utf-8', 'backslashreplace').decode(),
    'image': io.BytesIO(encoded[0] if encoded else b''),
    'more_images': encoded[1:],
    'size': sizes[0] if sizes else (0, 0),
    'annotation': json.dumps(item.annotation, default=lambda value: value.tolist()),
  }
  return record, sizes


def _outline(record: Mapping[str, Any], sizes: Sequence[tuple[int, int]]) -> bytes:
  """Returns what `datasets.array_record` needs of a record with images to leave them unread."""
  if not sizes:
    return b''  # The record itself is as short.
  outline = {'id': record['id'], 'annotation': json.loads(record['annotation']), 'sizes': sizes}
  return json.dumps(outline).encode()
