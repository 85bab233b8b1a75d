"""Settings and fixtures of all tests.

Tests run on 8 fake CPU devices, so that every sharded path is real. `.cache/jax` keeps compiled
programs for all tests, their child processes and the next run of the tests.
"""

import gc
import os
import pathlib
from collections.abc import Generator

from tests import xla

ROOT = pathlib.Path(__file__).parent.parent
CACHE = {
  'JAX_COMPILATION_CACHE_DIR': str(ROOT / '.cache' / 'jax'),
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
}
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
os.environ.setdefault('JAX_DISABLE_MOST_OPTIMIZATIONS', '1')  # Programs compile twice as fast.
for name, value in CACHE.items():
  os.environ.setdefault(name, value)
if 'xla_force_host_platform_device_count' not in os.environ.get('XLA_FLAGS', ''):
  os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {xla.flags(devices=8)}'

import filelock  # noqa: E402  After the settings above, as all imports here.
import jax  # noqa: E402
import pytest  # noqa: E402
from xdist.scheduler import LoadScopeScheduling  # noqa: E402

from tests.recipe_run import run_recipe  # noqa: E402

# Modules that take long, in the order in which they start, so that the workers end together. The
# first three share the finished recipe; test_docs, which needs it too, starts when it is there.
RECIPE = (
  'tests/test_recipe.py',
  'tests/launch/test_notebooks.py',
  'tests/test_peek.py',
)
SLOWEST = (
  *RECIPE,
  'tests/planning/test_plan.py',
  'tests/generate/test_golden.py',
  'tests/test_study.py',
  'tests/test_docs.py',
  'tests/test_hosts.py',
  'tests/pretraining/test_loop.py',
  'tests/test_run.py',
  'tests/test_evaluate.py',
  'tests/test_predict.py',
  'tests/planning/test_counts.py',
  'tests/planning/test_compiled.py',
  'tests/models/test_sphinx.py',
  'tests/test_train.py',
  'tests/test_learned_weights.py',
  'tests/test_mix_choice.py',
  'tests/test_convert.py',
)


def module_of(nodeid: str) -> str:
  return nodeid.partition('::')[0]


def pytest_addoption(parser: pytest.Parser) -> None:
  parser.addoption('--slow', action='store_true', help='Run the tests marked slow, too.')


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator:
  """Keeps the garbage collector off what is imported, all of which stays to the end.

  It would take a fifth of the collection. Later it runs at every 20,000 new objects: a traced
  program has some hundred thousand.
  """
  gc.disable()
  result = yield
  gc.freeze()
  gc.set_threshold(20_000)
  gc.enable()
  return result


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
  """Leaves out the slow tests unless asked for, and puts the slowest modules first."""
  if not config.getoption('--slow'):
    slow = [item for item in items if item.get_closest_marker('slow')]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if not item.get_closest_marker('slow')]
  rank = {module: number for number, module in enumerate(SLOWEST)}
  items.sort(key=lambda item: rank.get(module_of(item.nodeid), len(rank)))


def pytest_runtest_setup(item: pytest.Item) -> None:
  if item.get_closest_marker('gpu') and jax.default_backend() != 'gpu':
    pytest.skip('waits for an NVIDIA GPU since 2026-11-28')


class Scheduling(LoadScopeScheduling):
  """One module on one worker, so that fixtures are shared; so do the modules of `RECIPE`."""

  def _split_scope(self, nodeid: str) -> str:
    module = module_of(nodeid)
    return 'recipe' if module in RECIPE else module


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
  return Scheduling(config, log)


@pytest.fixture(scope='module')
def optimized():
  """For tests of the numbers or the size of compiled programs: they are optimized as users' are."""
  before = jax.config.values['jax_disable_most_optimizations']
  jax.config.update('jax_disable_most_optimizations', False)
  yield
  jax.config.update('jax_disable_most_optimizations', before)


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """A folder that the workers of one test run share."""
  folder = tmp_path_factory.getbasetemp()
  return folder.parent if os.environ.get('PYTEST_XDIST_WORKER') else folder


@pytest.fixture(scope='session')
def finished_recipe(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The workdir of one finished quick recipe, made once a test run; tests leave it as it is."""
  workdir = shared_folder(tmp_path_factory) / 'recipe' / 'quick'
  workdir.parent.mkdir(exist_ok=True)
  with filelock.FileLock(workdir.parent / 'lock'):
    if not (workdir / 'report' / 'done.json').exists():
      done = run_recipe(workdir)
      assert done.returncode == 0, done.stderr
      (workdir.parent / 'output.txt').write_text(done.stdout + done.stderr)
  return workdir
