"""Encoders are trained alone, and a run begins with them."""

import io

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from sphinx_jax import datasets, run, train
from sphinx_jax.checkpoint import merged, store
from sphinx_jax.configs import mini
from sphinx_jax.core import errors, trees
from sphinx_jax.data.record import Record, Source
from sphinx_jax.pretraining import loop
from sphinx_jax.training import writer
from tests.generate import small as texts
from tests.models import small
from tests.tiny import crash, in_memory, lines, tiny

COLORS = {'red': (200, 0, 0), 'blue': (0, 0, 200), 'circle': (0, 200, 0), 'square': (90, 90, 0)}
UPDATES = 4


class Colors(Source):
  """Images of one color, with its name."""

  name = 'colors'
  has_images = True

  def __len__(self):
    return 64

  def __getitem__(self, index):
    rng = np.random.default_rng(index)
    name = list(COLORS)[index % len(COLORS)]
    pixels = np.clip(COLORS[name] + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    images = (file.getvalue(),) if self.has_images else ()
    return Record(f'{index}', 'caption', images, (('What?', name),), ({},))


@pytest.fixture(autouse=True)
def colors(monkeypatch):
  monkeypatch.setattr(datasets, 'open_source', lambda entry, data_dir: Colors())


def config(folder, *names, **changes) -> ConfigDict:
  """The section of these objectives, at a tiny width; its tokenizer is written into the folder."""
  (folder / 'tokenizer.model').write_bytes(texts.tokenizer().model_bytes)
  shipped = ConfigDict(mini.pretraining('mini')).copy_and_resolve_references()
  del shipped.kind
  shipped.model = small.config(grid=1)
  shipped.model.llm.vocab = 320
  shipped.tokenizer = str(folder / 'tokenizer.model')
  shipped.batch = dict(size=8, seq_len=40, text=8, window=16)
  shipped.objectives = {name: shipped.objectives[name] for name in names}
  for objective in shipped.objectives.values():
    objective.steps, objective.optimizer.warmup, objective.optimizer.lr = UPDATES, 1, 1e-2
    if 'text' in objective:
      objective.text = dict(width=8, layers=1, heads=2)
  if 'distill' in names:
    shipped.objectives.distill.update(prototypes=8, momentum=0.9, small=1)
  shipped.log_every, shipped.checkpoint.every = 1, 2
  shipped.update_from_flattened_dict(changes)
  return shipped.lock()


def flat(directory) -> dict:
  return jax.tree.map(np.asarray, trees.flatten(store.load_params(directory)))


def assert_equal(one: dict, other: dict) -> None:
  assert one.keys() == other.keys()
  for path in one:
    np.testing.assert_array_equal(one[path], other[path], path)


def test_an_interrupted_objective_ends_as_an_uninterrupted_one(tmp_path, monkeypatch):
  section = config(tmp_path, 'distill')
  loop.pretrain(section, tmp_path / 'whole')
  check, rows = loop._check_rows, iter(range(UPDATES))

  def crash_at_the_last(name, batch):
    check(name, batch)
    if next(rows) == UPDATES - 1:
      crash()

  with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='as if killed'):
    patch.setattr(loop, '_check_rows', crash_at_the_last)
    loop.pretrain(section, tmp_path / 'broken')
  assert store.latest(tmp_path / 'broken' / 'distill') == UPDATES // 2
  loop.pretrain(section, tmp_path / 'broken')
  assert lines(tmp_path / 'broken' / 'distill') == lines(tmp_path / 'whole' / 'distill')
  assert_equal(flat(tmp_path / 'broken'), flat(tmp_path / 'whole'))
  # What is done is not done again.
  monkeypatch.setattr(loop.Program, 'compile', lambda program: pytest.fail('it is done'))
  loop.pretrain(section, tmp_path / 'broken')


def test_only_the_student_has_a_gradient_and_its_teacher_follows(tmp_path):
  section = config(tmp_path, 'distill')
  program = loop.Program(section, 'distill')
  params = trees.flatten(jax.tree.map(np.asarray, program.init()[0]))
  workdir = tmp_path / 'distill'
  data = loop.open_data(section, 'distill', texts.tokenizer(), program.batch_sharding)
  section = section.copy_and_resolve_references()
  section.objectives.distill.steps = 1
  loop.train(section, 'distill', program, data, workdir)
  after = flat(workdir)
  for path, old in params.items():
    if path.startswith('teacher/'):
      student = after[path.replace('teacher', 'student', 1)]
      np.testing.assert_allclose(after[path], 0.9 * old + 0.1 * student, atol=1e-6)
  moved = {path for path in params if not np.array_equal(params[path], after[path])}
  assert {path.split('/')[0] for path in moved} == {'student', 'teacher', 'center'}
  assert set(trees.flatten(program.state.trained)) == {
    path for path in params if path.startswith('student/')
  }


@pytest.mark.parametrize('name', ['contrast', 'distill'])
def test_eight_devices_train_as_one(name, tmp_path):
  """The texts of all devices are compared with every image, and the center is that of all."""
  changes = {'objectives.contrast.trains': ('clip',)} if name == 'contrast' else {}
  for devices in (1, 8):
    section = config(tmp_path, name, **changes, **{'mesh.data': devices})
    loop.pretrain(section, tmp_path / str(devices))
  one, eight = (writer.read(tmp_path / str(devices) / name) for devices in (1, 8))
  for field in ('loss', 'grad_norm'):
    np.testing.assert_allclose(
      [line[field] for line in one], [line[field] for line in eight], rtol=2e-4
    )


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """A checkpoint of two encoders, of which the model of `tiny` has one."""
  workdir = tmp_path_factory.mktemp('encoders')
  section = config(workdir, 'contrast').copy_and_resolve_references()
  section.model = tiny().model.to_dict()
  section.model.llm.vocab = 320
  section.model.encoders.dinov2 = small.config().encoders.dinov2
  section.objectives.contrast.trains = ('clip', 'dinov2')
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(datasets, 'open_source', lambda entry, data_dir: Colors())
    loop.pretrain(section, workdir)
  return workdir


def test_a_run_begins_with_the_encoders_it_has(pretrained, tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())
  given = flat(pretrained)
  assert {path.split('/')[1] for path in given} == {'clip', 'dinov2'}
  train.train(tiny(init_from=str(pretrained)), tmp_path / 'run')
  trained = flat(tmp_path / 'run')
  frozen = {path: leaf for path, leaf in trained.items() if path.startswith('encoders/')}
  assert_equal(frozen, {path: leaf for path, leaf in given.items() if '/clip/' in path})
  fresh = trees.flatten(run.Program(tiny()).init())
  assert any(not np.array_equal(fresh[path], frozen[path]) for path in frozen)


def test_encoders_alone_are_no_whole_model(pretrained, tmp_path, monkeypatch):
  monkeypatch.setattr(run, 'open_data', in_memory())
  with pytest.raises(errors.SphinxError, match='got the encoders alone, expected all weights'):
    merged.open_checkpoint(pretrained)
  other = tiny(init_from=str(pretrained)).unlock()
  other.model.encoders.clip.layers = 2
  with pytest.raises(errors.SphinxError, match=r'clip/trunk.*expected \[2, .*the encoders of the'):
    train.train(other, tmp_path / 'first')
  other.model.encoders.convnext = small.config().encoders.convnext
  other.model.encoders.clip.layers = 1
  with pytest.raises(errors.SphinxError, match='encoders/convnext/.*: nothing, expected'):
    train.train(other, tmp_path / 'run')


@pytest.mark.parametrize(
  'changes, words',
  [
    ({'objectives.contrast.trains': ('qformer',)}, "trains 'qformer': got an encoder that returns"),
    ({'objectives.captions.trains': ('clip',)}, "trains 'clip': got .* a feature map, expected"),
    ({'batch.size': 6, 'mesh.data': 4}, 'batch.size: got 6'),
    ({'model.llm.vocab': 300}, 'tokenizer.model.: got .* ids, expected at most model.llm.vocab'),
  ],
)
def test_what_does_not_fit_is_refused_before_anything_is_trained(changes, words, tmp_path):
  section = config(tmp_path, 'contrast', 'captions', **changes)
  with pytest.raises(errors.SphinxError, match=words):
    loop.pretrain(section, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_examples_without_an_image_are_refused(tmp_path, monkeypatch):
  monkeypatch.setattr(Colors, 'has_images', False)
  section = config(tmp_path, 'contrast', **{'objectives.contrast.trains': ('clip',)})
  with pytest.raises(errors.SphinxError, match='contrast.data: got .* rows without exactly one'):
    loop.pretrain(section, tmp_path / 'run')
