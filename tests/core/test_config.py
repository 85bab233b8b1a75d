import threading
from concurrent import futures

import ml_collections
import pytest

from sphinx_jax.core import config as config_lib, errors
from tests.checkpoint import bucket


def _config(**changes):
  values = {'name': 'run', 'optimizer': {'lr': 0.1, 'betas': (0.9, 0.95)}, 'log_every': 10}
  return ml_collections.ConfigDict(values | changes).lock()


def test_json_gives_the_config_back_locked():
  config = config_lib.from_json(config_lib.to_json(_config()))
  assert config == _config() and config.optimizer.betas == (0.9, 0.95)
  with pytest.raises(AttributeError, match='optimizer'):
    config.optimzer = 1


def test_a_workdir_belongs_to_the_config_that_made_it(tmp_path):
  config_lib.claim(tmp_path / 'run', _config())
  config_lib.claim(tmp_path / 'run', _config())
  with pytest.raises(errors.SphinxError, match='optimizer.lr: 0.1 there, 0.2 here'):
    config_lib.claim(tmp_path / 'run', _config(optimizer={'lr': 0.2, 'betas': (0.9, 0.95)}))
  config_lib.claim(tmp_path / 'run', _config(log_every=5), ignore=('log_every',))


def test_a_directory_with_other_files_is_refused(tmp_path):
  (tmp_path / 'thesis.tex').write_text('precious')
  with pytest.raises(errors.SphinxError, match='thesis.tex'):
    config_lib.claim(tmp_path, _config())


def test_a_workdir_may_be_in_a_bucket(tmp_path):
  with bucket.bucket(tmp_path):
    for _ in range(2):
      assert str(config_lib.claim('gs://bucket/run', _config())) == 'gs://bucket/run'
    with pytest.raises(errors.SphinxError, match='optimizer.lr: 0.1 there, 0.2 here'):
      config_lib.claim('gs://bucket/run', _config(optimizer={'lr': 0.2, 'betas': (0.9, 0.95)}))
  assert config_lib.from_json((tmp_path / 'bucket/run/config.json').read_text()) == _config()


def test_processes_that_start_at_once_share_a_new_workdir(tmp_path):
  start = threading.Barrier(3)

  def claim(workdir):
    start.wait()
    config_lib.claim(workdir, _config())

  with futures.ThreadPoolExecutor(3) as pool:
    for number in range(20):
      list(pool.map(claim, [tmp_path / str(number)] * 3))
