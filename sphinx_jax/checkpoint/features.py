"""Features of frozen encoders on disk, so that an image is encoded once and not in every epoch.

The features of an image are one vector: what the encoders make of it, before the projections. They
are found by the hash of the pixels, in a folder whose name is a hash of all that makes them: the
weights, the compiled program (model config, dtype, shapes, mesh), the version of JAX and the kind
of processor. So a run reads only numbers that it would compute itself. The encoder runs on as many
images at a time as in an update, because XLA's products round otherwise for other numbers of rows.

A folder holds shards, each a safetensors file that is renamed to its name when it is complete and
never changed. Every process writes shards of its own and reads those of all, so runs and hosts may
share a folder on any file system. Other forms fit less: one file an image is too many; array_record
cannot be read while it is written; SQLite's locks do not work on network drives; tensorstore's
OCDBT rewrites nodes of its tree at every commit.
"""

import collections
import contextlib
import json
import os
import pathlib
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
import safetensors
import safetensors.numpy
import xxhash
from jax.sharding import NamedSharding

from sphinx_jax.checkpoint import fingerprint
from sphinx_jax.core import batch as batch_contract, compile_cache, errors, files
from sphinx_jax.core.progress import log
from sphinx_jax.parallel import hosts, placement

_SHARD_BYTES = 1 << 27  # Features that wait in memory for the next shard; a kill loses them.
_FREE = 0.1  # Share of the disk that stays free, for checkpoints and others.
_AHEAD = 8  # Most batches whose missing images are encoded together.
_SCAN_SECONDS = 60.0  # Time between two looks for shards of other processes.


class Store:
  """Entries of equal size by key. A damaged entry or shard is counted and read as absent.

  Args:
    folder: made if absent.
    entry_bytes: bytes of an entry.
    about: facts that every shard carries, for people.

  Attributes:
    damaged: number of damaged entries, and of shards that could not be opened.

  Raises:
    SphinxError: the folder cannot be made.
  """

  def __init__(self, folder: pathlib.Path, entry_bytes: int, about: Mapping[str, str]) -> None:
    self.damaged = 0
    self._folder, self._about = folder, dict(about)
    with files.writing(folder):
      folder.mkdir(parents=True, exist_ok=True)
    self._index: dict[bytes, tuple[pathlib.Path, int, int]] = {}  # Shard, row, hash of the entry.
    self._seen: set[pathlib.Path] = set()
    self._buffer = np.empty((max(_SHARD_BYTES // entry_bytes, 1), entry_bytes), np.uint8)
    self._pending: dict[bytes, int] = {}  # Row of the buffer.
    self._is_full = False
    self._scan()

  def __len__(self) -> int:
    return len(self._index) + len(self._pending)

  def read(self, key: bytes) -> np.ndarray | None:
    """Returns the entry of a key, uint8[entry_bytes], or None."""
    if key in self._pending:
      return self._buffer[self._pending[key]]
    if key not in self._index:
      return None
    path, row, expected = self._index[key]
    with contextlib.suppress(Exception):  # A parser may raise any on a damaged file.
      with safetensors.safe_open(path, 'numpy') as shard:
        entry = shard.get_slice('features')[row : row + 1][0]
      if xxhash.xxh3_64_intdigest(entry) == expected:
        return entry
    self.damaged += 1
    del self._index[key]
    return None

  def refresh(self) -> None:
    """Looks for shards that other processes have written since."""
    if time.monotonic() - self._scanned > _SCAN_SECONDS:
      self._scan()

  def add(self, key: bytes, entry: np.ndarray) -> None:
    """Adds an entry uint8[entry_bytes], which is on disk after `flush`."""
    if self._is_full:
      return
    row = len(self._pending)
    self._buffer[row] = entry
    self._pending[key] = row
    if row + 1 == len(self._buffer):
      self.flush()

  def flush(self) -> None:
    """Writes the entries that wait. On a disk that is full, nothing is kept from then on."""
    if not self._pending:
      return
    entries = self._buffer[: len(self._pending)]
    sums = [xxhash.xxh3_64_intdigest(entry) for entry in entries]
    # Names are in the order of time, and later shards take the place of damaged ones.
    path = self._folder / f'{time.time_ns():020d}-{uuid.uuid4().hex}.safetensors'
    try:
      disk = shutil.disk_usage(self._folder)
      if disk.free - entries.nbytes < _FREE * disk.total:
        raise errors.make(
          f"directory '{self._folder}'",
          f'{disk.free:,} of {disk.total:,} bytes free',
          f'{_FREE:.0%} that stay free for other files',
          'make room',
        )
      tensors = {
        'features': entries,
        'keys': np.frombuffer(b''.join(self._pending), np.uint8).reshape(len(entries), -1),
        'sums': np.array(sums, np.uint64),
      }
      files.write_atomic(path, safetensors.numpy.save(tensors, self._about))
    except (OSError, errors.SphinxError) as error:
      log.warning('features of more images are not kept: %s', error)
      self._is_full = True
    else:
      self._add_shard(path, list(self._pending), sums)
    self._pending = {}

  def _scan(self) -> None:
    """Reads the keys of shards that were not seen before."""
    self._scanned = time.monotonic()
    for path in sorted(set(self._folder.glob('*.safetensors')) - self._seen):
      try:
        with safetensors.safe_open(path, 'numpy') as shard:
          keys, sums = shard.get_tensor('keys'), shard.get_tensor('sums')
      except Exception as error:  # A parser may raise any on a damaged file.
        log.warning('features: a damaged file, which can be deleted: %s (%s)', path, error)
        self.damaged += 1
        keys, sums = (), np.array((), np.uint64)
      self._add_shard(path, [key.tobytes() for key in keys], sums.tolist())

  def _add_shard(self, path: pathlib.Path, keys: list[bytes], sums: list[int]) -> None:
    self._seen.add(path)
    for row, (key, checksum) in enumerate(zip(keys, sums)):
      self._index[key] = path, row, checksum


class _Item(NamedTuple):
  """A batch that was looked up.

  Attributes:
    batch: with pixels.
    position: data position after it.
    features: [B,N,F]; zero in unused slots, and where they are missing.
    missing: key of an image without features -> its rows and slots.
  """

  batch: dict[str, np.ndarray]
  position: int
  features: np.ndarray
  missing: dict[bytes, list[tuple[int, int]]]


class Features:
  """Takes the batches of a run and puts features in place of pixels: kept ones, or computed ones.

  A context: at its end the features that still wait in memory are written.

  Args:
    directory: local directory, or one that several hosts share.
    encoder: `(parameters, images uint8[B,N,Y,X,3]) -> features [B,N,F]`, of a part of a batch.
    weights: tree of the parameters that the encoder reads.
    sharding: that of a batch.
    batches: iterator of (this process's rows of a batch, data position after it).

  Attributes:
    folder: the folder of these features.
    read: number of slots whose features were kept.
    computed: number of images whose features were computed.

  Raises:
    SphinxError: the directory is in a bucket, or cannot be made.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    encoder: jax.stages.Lowered,
    weights: Any,
    sharding: NamedSharding,
    batches: Iterator[tuple[dict[str, np.ndarray], int]],
  ) -> None:
    if files.is_remote(directory):
      raise errors.make(
        'cache_features',
        f"the bucket '{directory}'",
        'a directory of a local or a shared disk',
        'give another one',
      )
    self._lowered, self._compiled, self._sharding = encoder, None, sharding
    (_, images), _ = encoder.args_info
    self._images = (len(hosts.local_rows(sharding, images.shape[0])), *images.shape[1:])
    self._width, self._dtype = encoder.out_info.shape[-1], np.dtype(encoder.out_info.dtype)
    device = sharding.mesh.devices.flat[0]
    processor = compile_cache.processor() if device.platform == 'cpu' else device.device_kind
    about = {
      'program': _hash(encoder.as_text()),
      'weights': _hash(json.dumps(fingerprint.fingerprint_tree(weights))),
      'processor': _hash(processor),
      'jax': jax.__version__,
    }
    self.folder = pathlib.Path(directory).expanduser() / _hash(json.dumps(about))
    self._store = Store(self.folder, self._width * self._dtype.itemsize, about)
    self._batches, self._ahead = batches, collections.deque[_Item]()
    self._error: Exception | None = None
    self.read = self.computed = 0
    log.info(
      'features of %d images in %s, %.1f KiB each',
      len(self._store),
      self.folder,
      self._width * self._dtype.itemsize / 2**10,
    )

  def next(self, params: Any) -> tuple[dict[str, np.ndarray], int]:
    """Returns the next batch, with features (see core/batch.py), and the data position after it.

    All processes call this for the same batch, with all parameters, as the encoder takes them.
    Raises what `batches` raises, after the batches before.
    """
    self._store.refresh()
    if not self._ahead and not self._look_ahead():
      raise self._error
    if hosts.process_count() > 1:
      placement.block_on_cpu(params)
    # All processes run the encoder equally often.
    while hosts.largest(len(self._ahead[0].missing)):
      self._encode(params)
    item = self._ahead.popleft()
    return batch_contract.with_features(item.batch, item.features), item.position

  def restart(self, batches: Iterator[tuple[dict[str, np.ndarray], int]]) -> None:
    """Continues with other batches. Those that were read ahead are dropped."""
    self._batches, self._error = batches, None
    self._ahead.clear()

  def _look_ahead(self) -> bool:
    """Reads one more batch and the features of its images. Returns False if there is none."""
    if self._error is None:
      try:
        batch, position = next(self._batches)
      except Exception as error:  # Raised by `next` when its turn comes.
        self._error = error
    if self._error is not None:
      return False
    images, is_used = batch['images'], batch['image_size'].any(axis=-1)
    item = _Item(batch, position, np.zeros((*is_used.shape, self._width), self._dtype), {})
    for row, slot in np.argwhere(is_used):
      key = xxhash.xxh3_128_digest(images[row, slot])
      entry = None if key in item.missing else self._store.read(key)
      if entry is None:
        item.missing.setdefault(key, []).append((row, slot))
      else:
        item.features[row, slot] = entry.view(self._dtype)
        self.read += 1
    self._ahead.append(item)
    return True

  def _encode(self, params: Any) -> None:
    """Encodes missing images of the first batch and, where there is room, of those after it."""
    local_rows, slots = self._images[:2]
    at_once = local_rows * slots
    images: dict[bytes, np.ndarray] = {}
    for number in range(_AHEAD):
      if len(images) == at_once or not (number < len(self._ahead) or self._look_ahead()):
        break
      item = self._ahead[number]
      for key, places in item.missing.items():
        if len(images) < at_once:
          images[key] = item.batch['images'][places[0]]
    pixels = np.zeros(self._images, np.uint8)
    for place, image in enumerate(images.values()):
      pixels[divmod(place, slots)] = image
    for key, entry in zip(images, self._run(params, pixels).reshape(at_once, -1)):
      self._store.add(key, entry.view(np.uint8))
      for item in self._ahead:
        for place in item.missing.pop(key, ()):
          item.features[place] = entry
    self.computed += len(images)

  def _run(self, params: Any, pixels: np.ndarray) -> np.ndarray:
    """Features [B,N,F] of this process's part of a call of the encoder."""
    if self._compiled is None:  # Not needed where all features are kept.
      self._compiled = self._lowered.compile()
    images = placement.put({'images': pixels}, self._sharding)['images']
    parts = self._compiled(params, images).addressable_shards
    by_row = {part.index[0].start or 0: part for part in parts}
    return np.concatenate([np.asarray(by_row[row].data) for row in sorted(by_row)])

  def __enter__(self) -> 'Features':
    return self

  def __exit__(self, *_: object) -> None:
    self._store.flush()
    log.info(
      'features: %d read, %d computed, %d damaged', self.read, self.computed, self._store.damaged
    )


def _hash(text: str) -> str:
  return xxhash.xxh3_128_hexdigest(text.encode())
