"""The TFDS builder of miniworld, and `build`, which makes it once and recognises it afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import shutil

import tensorflow_datasets as tfds

from sphinx_jax.core import errors
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.miniworld import corpus, scene, workers

NAME = 'miniworld'
CONFIGS = ('scenes', 'text')
SIZES = {
  'train': {'objects': 8000, 'words': 3500, 'page': 3500, 'figure': 3500, 'text': 6000},
  'validation': {'objects': 200, 'words': 200, 'page': 200, 'figure': 200, 'text': 200},
  'test': {'objects': 300, 'words': 300, 'page': 300, 'figure': 300, 'text': 300},
}


class Miniworld(tfds.core.GeneratorBasedBuilder):
  """Scenes with annotations ("scenes": id, image, annotation as JSON) and sentences ("text": text).

  Splits of "scenes" are {train,validation,test}_{objects,words,page,figure}, of "text" the three alone.
  sizes: {split: {kind or "text": number}}, image_size: pixels a side, seed: chooses everything, executor: of
  `workers.pool`, which draws (default: this process), advance: called with 1 for each finished scene.
  """

  VERSION = tfds.core.Version('1.0.8')
  BUILDER_CONFIGS = [
    tfds.core.BuilderConfig(name='scenes', description='drawn scenes'),
    tfds.core.BuilderConfig(name='text', description='sentences about the scenes'),
  ]

  def __init__(
    self, *, sizes=None, image_size=64, seed=0, executor=None, advance=lambda units: None, **kwargs
  ):
    self._sizes, self._image_size, self._seed = sizes or SIZES, image_size, seed
    self._executor, self._advance = executor, advance
    super().__init__(**kwargs)

  def _info(self):
    if self.builder_config.name == 'text':
      features = {'text': tfds.features.Text()}
    else:
      side = self._image_size
      features = {
        'id': tfds.features.Text(),
        'annotation': tfds.features.Text(),
        'image': tfds.features.Image(shape=(side, side, 3), encoding_format='png'),
      }
    return tfds.core.DatasetInfo(
      builder=self,
      description='Scenes that draw themselves: shapes, words, pages, stick figures.',
      features=tfds.features.FeaturesDict(features),
      disable_shuffling=True,
      metadata=tfds.core.MetadataDict(_identity(self._sizes, self._image_size, self._seed)),
    )

  def _split_generators(self, dl_manager):
    del dl_manager
    if self.builder_config.name == 'text':
      return {split: self._generate_examples(split, 'text') for split in scene.SPLITS}
    return {
      f'{split}_{kind}': self._generate_examples(split, kind)
      for split in scene.SPLITS
      for kind in scene.KINDS
    }

  def _generate_examples(self, split, kind):
    yield from enumerate(self._texts(split) if kind == 'text' else self._scenes(split, kind))

  def _texts(self, split):
    for text in corpus.texts(split, self._sizes[split]['text'], self._seed):
      yield {'text': text}

  def _scenes(self, split, kind):
    for row in workers.rows(
      kind, split, self._sizes[split][kind], self._seed, self._image_size, self._executor
    ):
      yield row | {'image': io.BytesIO(row['image'])}
      self._advance(1)


def _identity(sizes, image_size, seed):
  """What a build depends on; kept in its metadata to know it again."""
  return {'sizes': sizes, 'image_size': int(image_size), 'seed': int(seed)}


def _resolved(sizes):
  """`sizes` with what is not given taken from SIZES. Raises SphinxError for unknown names and impossible numbers."""
  for split, kinds in sizes.items():
    if split not in SIZES:
      raise errors.unknown('miniworld split', split, SIZES)
    for kind, count in kinds.items():
      if kind not in SIZES[split]:
        raise errors.unknown(f"kind in miniworld sizes['{split}']", kind, SIZES[split])
      if not isinstance(count, int) or count < 1:
        name = f"miniworld sizes['{split}']['{kind}']"
        raise errors.make(name, repr(count), 'a whole number of at least 1', 'correct it')
  return {split: kinds | dict(sizes.get(split, {})) for split, kinds in SIZES.items()}


def _check(image_size, seed):
  if image_size < 32:
    raise errors.make(
      'miniworld image_size',
      str(image_size),
      'at least 32 pixels a side',
      'choose a larger picture',
    )
  if seed < 0:
    raise errors.make(
      'miniworld seed', str(seed), 'a whole number from 0 on', 'choose another seed'
    )


def location(data_dir, config) -> pathlib.Path:
  """The folder of a finished build of a config ("scenes" or "text")."""
  return pathlib.Path(data_dir) / NAME / config / str(Miniworld.VERSION)


def _finished(folder, identity):
  """Whether `folder` holds this very build. Raises SphinxError if it holds another."""
  if not (folder / 'dataset_info.json').exists():
    return False
  path = folder / 'metadata.json'
  found = json.loads(path.read_text()) if path.exists() else None
  if found == identity:
    return True
  raise errors.make(
    f'miniworld in {folder}',
    f'a build of {found}',
    f'{identity}',
    'name another data_dir, or delete that folder to build again',
  )


def build(data_dir, sizes=None, image_size=64, seed=0, processes=None) -> pathlib.Path:
  """Builds miniworld under `data_dir`, unless it is there already.

  sizes: {split: {objects, words, page, figure, text: number}}, what is not given is as in SIZES,
  image_size: pixels a side, seed: chooses everything,
  processes: that draw (default: up to 2; the result does not depend on it).
  An interrupted build is begun again. Raises SphinxError if the folder holds a build with other numbers.
  """
  sizes = _resolved(sizes or {})
  _check(image_size, seed)
  identity = _identity(sizes, image_size, seed)
  wanted = [config for config in CONFIGS if not _finished(location(data_dir, config), identity)]
  if wanted:
    scenes = sum(sizes[split][kind] for split in scene.SPLITS for kind in scene.KINDS) * (
      'scenes' in wanted
    )
    with (
      _quiet(),
      workers.pool(processes, scenes) as executor,
      Progress(total=scenes, what=NAME, unit='scenes') as bar,
    ):
      for config in wanted:
        _build(
          config,
          data_dir,
          sizes=sizes,
          image_size=image_size,
          seed=seed,
          executor=executor,
          advance=bar.update,
        )
  return pathlib.Path(data_dir) / NAME


def _build(config, data_dir, **arguments):
  folder = location(data_dir, config)
  for leftover in folder.parent.glob(f'*{folder.name}*'):  # of an interrupted build
    shutil.rmtree(leftover)
  Miniworld(
    config=config, data_dir=str(data_dir), file_format='array_record', **arguments
  ).download_and_prepare()
  log.info('miniworld: built %s', folder)


@contextlib.contextmanager
def _quiet():
  """Without TFDS's own bars and banner: `progress` speaks for the build."""
  tfds.disable_progress_bar()
  try:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
  finally:
    tfds.enable_progress_bar()
