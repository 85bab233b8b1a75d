"""The TFDS builder of miniworld, and `build`, which builds it once."""

import contextlib
import io
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any

import tensorflow_datasets as tfds

from sphinx_jax.core import errors
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.miniworld import corpus, reader, scene, workers

CONFIGS = ('scenes', 'text')
# Split -> kind of scene or 'text' -> number of them.
SIZES = {
  'train': {'objects': 8000, 'words': 3500, 'page': 3500, 'figure': 3500, 'text': 6000},
  'validation': {'objects': 200, 'words': 200, 'page': 200, 'figure': 200, 'text': 200},
  'test': {'objects': 300, 'words': 300, 'page': 300, 'figure': 300, 'text': 300},
}

Sizes = Mapping[str, Mapping[str, int]]


class Miniworld(tfds.core.GeneratorBasedBuilder):
  """Scenes with annotations (config 'scenes') and sentences (config 'text').

  A row of 'scenes' has id, image and annotation (JSON), a row of 'text' has text. The splits of
  'scenes' are {train,validation,test}_{objects,words,page,figure}. Those of 'text' are train,
  validation and test.

  Args:
    sizes: {split: {kind or 'text': number}}.
    image_size: edge of the images in pixels.
    seed: seed of everything.
    scale: size of objects and words, as a factor of the usual one.
    executor: draws the scenes, see `workers.open_pool`. None: this process.
    advance: called with 1 for each finished scene.
    **kwargs: arguments of the TFDS builder.
  """

  VERSION = tfds.core.Version(reader.VERSION)
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name='scenes', description='drawn scenes'),
    tfds.core.BuilderConfig(name='text', description='sentences about the scenes'),
  ]

  def __init__(
    self,
    *,
    sizes: Sizes | None = None,
    image_size: int = 64,
    seed: int = 0,
    scale: float = 1.0,
    executor: Executor | None = None,
    advance: Callable[[int], None] = lambda units: None,
    **kwargs: Any,
  ) -> None:
    self._sizes, self._image_size, self._seed = sizes or SIZES, image_size, seed
    self._scale = scale
    self._executor, self._advance = executor, advance
    super().__init__(**kwargs)

  def _info(self) -> tfds.core.DatasetInfo:
    if self.builder_config.name == 'text':
      features = {'text': tfds.features.Text()}
    else:
      size = self._image_size
      features = {
        'id': tfds.features.Text(),
        'annotation': tfds.features.Text(),
        'image': tfds.features.Image(shape=(size, size, 3), encoding_format='png'),
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Scenes that draw themselves: shapes, words, pages, stick figures.',
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(
        _identity(self._sizes, self._image_size, self._seed, self._scale)
      ),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[int, dict]]]:
    del dl_manager
    if self.builder_config.name == 'text':
      return {split: self._generate_examples(split, 'text') for split in scene.SPLITS}
    return {
      f'{split}_{kind}': self._generate_examples(split, kind)
      for split in scene.SPLITS
      for kind in scene.KINDS
    }

  def _generate_examples(self, split: str, kind: str) -> Iterator[tuple[int, dict]]:
    yield from enumerate(self._texts(split) if kind == 'text' else self._scenes(split, kind))

  def _texts(self, split: str) -> Iterator[dict]:
    for text in corpus.texts(split, self._sizes[split]['text'], self._seed):
      yield {'text': text}

  def _scenes(self, split: str, kind: str) -> Iterator[dict]:
    count = self._sizes[split][kind]
    for row in workers.draw_rows(
      kind, split, count, self._seed, self._image_size, self._executor, self._scale
    ):
      yield row | {'image': io.BytesIO(row['image'])}
      self._advance(1)


def _identity(sizes: Sizes, image_size: int, seed: int, scale: float) -> dict[str, Any]:
  """The arguments that a build depends on. They are stored in its metadata."""
  scaled = {} if scale == 1 else {'scale': scale}  # Older builds have no scale.
  return {'sizes': sizes, 'image_size': int(image_size), 'seed': int(seed), **scaled}


def _complete_sizes(sizes: Sizes) -> dict[str, dict[str, int]]:
  """Returns `sizes` with the missing numbers of SIZES.

  Raises:
    SphinxError: an unknown name or an impossible number.
  """
  for split, kinds in sizes.items():
    if split not in SIZES:
      raise errors.unknown('miniworld split', split, SIZES)
    for kind, count in kinds.items():
      if kind not in SIZES[split]:
        raise errors.unknown(f"kind in miniworld sizes['{split}']", kind, SIZES[split])
      if not isinstance(count, int) or count < 1:
        raise errors.make(
          f"miniworld sizes['{split}']['{kind}']",
          repr(count),
          'a whole number of at least 1',
          'correct it',
        )
  return {split: kinds | dict(sizes.get(split, {})) for split, kinds in SIZES.items()}


def _check(image_size: int, seed: int) -> None:
  if image_size < 32:
    raise errors.make(
      'miniworld image_size',
      f'{image_size} pixels',
      'at least 32 pixels',
      'choose larger images',
    )
  if seed < 0:
    raise errors.make('miniworld seed', str(seed), 'at least 0', 'choose another seed')


def _is_finished(directory: pathlib.Path, identity: dict[str, Any]) -> bool:
  """Whether `directory` holds this build. Raises SphinxError if it holds another one."""
  if not (directory / 'dataset_info.json').exists():
    return False
  path = directory / 'metadata.json'
  stored = json.loads(path.read_text()) if path.exists() else None
  if stored == identity:
    return True
  raise errors.make(
    f'miniworld in {directory}',
    f'a build of {stored}',
    f'{identity}',
    'name another data_dir, or delete that directory to build again',
  )


def build(
  data_dir: str | pathlib.Path,
  sizes: Sizes | None = None,
  image_size: int = 64,
  seed: int = 0,
  processes: int | None = None,
  scale: float = 1.0,
) -> pathlib.Path:
  """Builds miniworld under `data_dir`, unless it is there already.

  An interrupted build starts again.

  Args:
    data_dir: directory of the data.
    sizes: {split: {objects, words, page, figure, text: number}}. Missing numbers are as in SIZES.
    image_size: edge of the images in pixels.
    seed: seed of everything.
    processes: processes that draw; None: up to 2. The result does not depend on it.
    scale: size of objects and words, as a factor of the usual one. At half of it, they are readable
      in views of twice the resolution only.

  Returns:
    The directory of the build.

  Raises:
    SphinxError: wrong arguments, or the directory holds a build with other arguments.
  """
  sizes = _complete_sizes(sizes or {})
  _check(image_size, seed)
  identity = _identity(sizes, image_size, seed, scale)
  missing = [
    config for config in CONFIGS if not _is_finished(reader.location(data_dir, config), identity)
  ]
  if missing:
    scenes = 0
    if 'scenes' in missing:
      scenes = sum(sizes[split][kind] for split in scene.SPLITS for kind in scene.KINDS)
    with (
      _quiet_tfds(),
      workers.open_pool(processes, scenes) as executor,
      Progress(total=scenes, what=reader.NAME, unit='scenes') as bar,
    ):
      for config in missing:
        _build_config(
          config,
          data_dir,
          sizes=sizes,
          image_size=image_size,
          seed=seed,
          scale=scale,
          executor=executor,
          advance=bar.update,
        )
  return pathlib.Path(data_dir) / reader.NAME


def _build_config(config: str, data_dir: str | pathlib.Path, **arguments: Any) -> None:
  directory = reader.location(data_dir, config)
  for leftover in directory.parent.glob(f'*{directory.name}*'):  # Of an interrupted build.
    shutil.rmtree(leftover)
  builder = Miniworld(
    config=config, data_dir=str(data_dir), file_format='array_record', **arguments
  )
  builder.download_and_prepare()
  log.info('miniworld: built %s', directory)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
  """Hides TFDS's own bars and banner. Our progress bar replaces them."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
