"""The lmms-eval adapter, on a stub of that package; it was checked with lmms_eval 0.7.3 itself."""

import abc
import dataclasses
import importlib
import sys
import types

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.generate.model import Model
from tests.generate import small


class lmms(abc.ABC):
  """Stands for `lmms_eval.api.model.lmms`."""

  is_simple = True

  def __init__(self):
    self.task_dict = {}
    self.cached = []
    self.cache_hook = types.SimpleNamespace(add_partial=lambda *entry: self.cached.append(entry))

  @abc.abstractmethod
  def loglikelihood(self, requests): ...

  @abc.abstractmethod
  def generate_until(self, requests): ...

  @abc.abstractmethod
  def generate_until_multi_round(self, requests): ...

  @classmethod
  def create_from_arg_string(cls, text, additional=None):
    more = {name: value for name, value in (additional or {}).items() if value is not None}
    return cls(**dict(part.split('=') for part in text.split(',')), **more)


@dataclasses.dataclass
class ModelManifest:
  model_id: str
  simple_class_path: str


@pytest.fixture(scope='module')
def adapter():
  modules = {
    name: types.ModuleType(name)
    for name in (
      'lmms_eval',
      'lmms_eval.api',
      'lmms_eval.api.model',
      'lmms_eval.models',
      'lmms_eval.models.registry_v2',
    )
  }
  modules['lmms_eval.api.model'].lmms = lmms
  modules['lmms_eval.models'].registry_v2 = modules['lmms_eval.models.registry_v2']
  modules['lmms_eval.models.registry_v2'].ModelManifest = ModelManifest
  with pytest.MonkeyPatch.context() as patch:
    for name, module in modules.items():
      patch.setitem(sys.modules, name, module)
    patch.delitem(sys.modules, 'sphinx_jax.evaluation.lmms', raising=False)
    yield importlib.import_module('sphinx_jax.evaluation.lmms')
  sys.modules.pop('sphinx_jax.evaluation.lmms')


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small.save(tmp_path_factory.mktemp('run'))


@pytest.fixture
def model(adapter, checkpoint):
  """The model as lmms-eval finds and makes it, with four documents."""
  manifest = adapter.manifest()
  assert manifest.model_id == 'sphinx_jax'
  module, _, name = manifest.simple_class_path.rpartition('.')
  kind = getattr(sys.modules[module], name)
  assert issubclass(kind, lmms) and kind.is_simple
  more = {'batch_size': '2', 'max_batch_size': None, 'device': 'cuda:0'}
  model = kind.create_from_arg_string(f'pretrained={checkpoint}', more)
  images = [Image.fromarray(image) for image in small.images(3)]
  model.task_dict = {'task': {'test': [[image] for image in images] + [[]]}}
  return model


def request(doc, context='What is it?', visual=lambda doc: doc, **kwargs):
  usual = {'max_new_tokens': 6, 'temperature': 0, 'top_p': None, 'num_beams': 1, 'do_sample': False}
  return types.SimpleNamespace(args=(context, usual | kwargs, visual, doc, 'task', 'test'))


def test_answers_are_those_of_the_model_in_the_order_of_the_requests(model):
  images = [*small.images(3), None]
  asked = [
    request(doc, context=f'<image>\nWhat is it? {doc}', max_new_tokens=[6, 3][doc % 2])
    for doc in (3, 0, 2, 1)
  ]
  expected = [
    small.model().answers(
      [[(f'What is it? {doc}', None)]], [images[doc]], max_new_tokens=[6, 3][doc % 2]
    )[0]
    for doc in (3, 0, 2, 1)
  ]
  assert model.generate_until(asked) == expected and len(set(expected)) == 4
  assert {entry[1][0]: entry[2] for entry in model.cached} == dict(
    zip((one.args[0] for one in asked), expected)
  )


def test_generation_settings_are_those_of_the_task(model, monkeypatch):
  seen = []

  def answers(self, turns, images, **more):
    assert more.pop('batch_size') == 2
    seen.append(more)
    return ['one\n\ntwo. three'] * len(turns)

  monkeypatch.setattr(Model, 'answers', answers)
  texts = model.generate_until(
    [
      request(0, until='\n\n', do_sample=True, temperature=0.7, top_p=0.9),
      request(1, until=['.', 'w']),
      request(2, until=[''], max_new_tokens=None),
    ]
  )
  assert texts == ['one', 'one\n\nt', 'one\n\ntwo. three']
  assert seen == [
    dict(max_new_tokens=6, temperature=0.7, top_p=0.9),
    dict(max_new_tokens=6, temperature=0.0, top_p=1.0),
    dict(max_new_tokens=1024, temperature=0.0, top_p=1.0),
  ]


def test_unsupported_requests_are_errors(model, adapter, checkpoint):
  with pytest.raises(errors.SphinxError, match="document 0.*'str'.*images alone"):
    model.generate_until([request(0, visual=lambda doc: ['film.mp4'])])
  with pytest.raises(errors.SphinxError, match='num_beams=1'):
    model.generate_until([request(0, num_beams=3)])
  for method in (model.loglikelihood, model.generate_until_multi_round):
    with pytest.raises(errors.SphinxError, match='leave the task out'):
      method([request(0)])
  with pytest.raises(errors.SphinxError, match="batch_size 'auto'"):
    adapter.Sphinx(str(checkpoint), batch_size='auto')


@pytest.mark.parametrize(
  'context, asked',
  [('Is <image> like <image>?', 'Is <image> like <image>?'), ('<image>Alike?', 'Alike?')],
)
def test_several_images_stand_at_their_marks_or_in_front(model, context, asked):
  first, second = small.images(2)
  several = request(0, context, visual=lambda doc: [*doc, Image.fromarray(second)])
  assert model.generate_until([several]) == small.model().answers(
    [[(asked, None)]], [[first, second]], max_new_tokens=6
  )


def test_a_gray_image_becomes_rgb(model):
  gray = Image.fromarray(small.images(1)[0][..., 0])
  model.task_dict['task']['test'].append([gray])
  image = np.repeat(small.images(1)[0][..., :1], 3, axis=2)
  assert model.generate_until([request(4)]) == small.model().answers(
    [[('What is it?', None)]], [image], max_new_tokens=6
  )
