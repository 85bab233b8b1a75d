"""Models that are found in the local hub cache by their names."""

import shutil

import numpy as np
import pytest

import sphinx_jax
from sphinx_jax.checkpoint.foreign import hub, mixing
from sphinx_jax.core import errors
from tests.models import idefics2_golden as golden


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """A hub cache as the hub's library makes it: blobs, and snapshots of links to them."""
  monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'hub'))

  def add(owner, name, revision='a' * 40, ref='main'):
    repo = tmp_path / 'hub' / f'models--{owner}--{name}'
    for folder in ('blobs', f'snapshots/{revision}', 'refs'):
      (repo / folder).mkdir(parents=True, exist_ok=True)
    for file in (golden.FOLDER / 'model').iterdir():
      blob = repo / 'blobs' / f'{revision}{file.name}'
      shutil.copy(file, blob)
      (repo / 'snapshots' / revision / file.name).symlink_to(blob)
    (repo / 'refs' / ref).write_text(revision)
    return repo / 'snapshots' / revision

  return add


def test_a_name_is_a_model_of_the_cache(cache, monkeypatch, tmp_path):
  snapshot = cache('HuggingFaceM4', 'idefics2-8b')
  cache('HuggingFaceM4', 'idefics2-8b', 'b' * 40, ref='other')
  monkeypatch.chdir(tmp_path)
  for name in ('idefics2-8b', 'HuggingFaceM4/idefics2-8b'):
    assert hub.locate(name) == snapshot
  ids = np.array([[1, 5, 6]])
  np.testing.assert_array_equal(
    sphinx_jax.load('idefics2-8b').logits(ids), sphinx_jax.load(golden.FOLDER / 'model').logits(ids)
  )
  (tmp_path / 'idefics2-8b').mkdir()
  assert str(hub.locate('idefics2-8b')) == 'idefics2-8b'  # A path wins.


def test_models_of_the_cache_are_mixed_by_their_names(cache, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  for name in ('idefics2-8b', 'idefics2-8b-chatty'):
    cache('HuggingFaceM4', name)
  mixing.mix_folders(['idefics2-8b', 'idefics2-8b-chatty'], (1, 0), 'mix')
  card = (tmp_path / 'mix' / 'README.md').read_text()
  assert '- HuggingFaceM4/idefics2-8b\n- HuggingFaceM4/idefics2-8b-chatty\n' in card
  assert str(tmp_path) not in card + (tmp_path / 'mix' / 'mix.json').read_text()


def test_names_that_name_no_model_or_several(cache, monkeypatch, tmp_path):
  monkeypatch.chdir(tmp_path)
  assert str(hub.locate('idefics2-8b')) == 'idefics2-8b'  # There is no cache.
  for owner in ('HuggingFaceM4', 'someone'):
    cache(owner, 'idefics2-8b')
  with pytest.raises(errors.SphinxError, match='HuggingFaceM4/idefics2-8b, someone/idefics2-8b'):
    hub.locate('idefics2-8b')
  with pytest.raises(errors.SphinxError, match='no such file or folder'):
    sphinx_jax.load('idefics3-8b')
