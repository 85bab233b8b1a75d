"""The installed package is complete and works from any directory, without the checkout."""

import ast
import importlib.metadata
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile

import pytest

from sphinx_jax.core import cli
from tests import xla

ROOT = pathlib.Path(__file__).parent.parent
FORKME = ROOT / 'configs' / 'forkme.py'
PAGE = ROOT / 'sphinx_jax' / 'serving' / 'page'
OLD_RUN = ROOT / 'tests' / 'golden' / 'run_0_1.tar.gz'
ENTRY_POINTS = sorted(
  file.stem
  for file in (ROOT / 'sphinx_jax').glob('*.py')
  if "if __name__ == '__main__':" in file.read_text()
)


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> pathlib.Path:
  """A wheel of the working tree, built in a copy: a `build` folder could add deleted modules."""
  source, output = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
  for name in ('setup.py', 'pyproject.toml', 'README.md', 'LICENSE'):
    shutil.copy(ROOT / name, source)
  for name in ('sphinx_jax', 'configs'):
    ignored = shutil.ignore_patterns('__pycache__')
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  options = ['--no-deps', '--no-build-isolation', '--quiet', f'--wheel-dir={output}']
  subprocess.run([sys.executable, '-m', 'pip', 'wheel', *options, str(source)], check=True)
  (path,) = output.glob('*.whl')
  return path


def test_the_wheel_has_every_module_config_and_page(wheel):
  expected = {file.relative_to(ROOT).as_posix() for file in (ROOT / 'sphinx_jax').rglob('*.py')}
  expected |= {f'sphinx_jax/configs/{file.name}' for file in (ROOT / 'configs').glob('*.py')}
  expected |= {f'sphinx_jax/report/{file.name}' for file in ROOT.glob('sphinx_jax/report/*.html')}
  expected |= {f'sphinx_jax/serving/page/{file.name}' for file in PAGE.iterdir()}
  expected |= {
    file.relative_to(ROOT).as_posix() for file in ROOT.glob('sphinx_jax/report/studies/*.json')
  }
  with zipfile.ZipFile(wheel) as archive:
    packed = {name for name in archive.namelist() if '.dist-info/' not in name}
  assert packed == expected


def test_every_imported_package_is_required():
  """Also those that would come along with another package today."""
  setup = (ROOT / 'setup.py').read_text().lower().replace('-', '_')
  required = set(re.findall(r"'([a-z0-9_]+)(?=[\[=>'])", setup)) | {'apache_beam'}
  distributions = importlib.metadata.packages_distributions()
  for file in [*(ROOT / 'sphinx_jax').rglob('*.py'), *(ROOT / 'configs').glob('*.py')]:
    for node in ast.walk(ast.parse(file.read_text())):
      names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
      if isinstance(node, ast.ImportFrom):
        names = [node.module]
      for name in {name.partition('.')[0] for name in names}:
        if name in sys.stdlib_module_names or name == 'sphinx_jax':
          continue
        found = {each.lower().replace('-', '_') for each in distributions.get(name, [name])}
        assert found & required, f'{file} imports {name}'


@pytest.mark.parametrize('name', ['mini:quick', 'configs/mini.py:quick', 'stage2:13b,1k', 'recipe'])
def test_shipped_configs_are_found_from_any_directory(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.load_config(name).is_locked


def test_a_file_in_the_current_directory_goes_before_a_shipped_config(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path('configs').mkdir()
  pathlib.Path('configs/mini.py').write_text('def get_config():\n  return dict(name="mine")\n')
  assert cli.load_config('configs/mini.py').name == 'mine'
  assert 'steps' in cli.load_config('mini')


def test_a_copy_of_forkme_is_read_from_any_directory(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  shutil.copy(FORKME, 'mine.py')
  config = cli.load_config('mine.py:some.jsonl')
  assert config.mixture.mine.path == f'{tmp_path}/some.jsonl'
  assert config.init_from == 'workdir/mini/stage2'


def _run(python, *arguments, cwd, **environment):
  """Runs a module with a Python that does not look into the current directory (-P)."""
  return subprocess.run(
    [python, '-P', '-m', *arguments],
    cwd=cwd,
    env=xla.environment() | environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


def test_an_entry_point_starts_from_any_directory(tmp_path):
  shutil.copy(FORKME, tmp_path / 'mine.py')
  done = _run(sys.executable, 'sphinx_jax.train', '--config=mine.py', '--workdir=run', cwd=tmp_path)
  assert done.returncode == 2 and 'workdir/mini/stage2' in done.stderr.splitlines()[-1]
  assert 'Traceback' not in done.stderr


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory):
  """Runs a module in an environment that has the wheel, and the dependencies of this one."""
  folder = tmp_path_factory.mktemp('environment')
  venv.create(folder, with_pip=False, symlinks=True)
  python = folder / 'bin' / 'python'
  site = subprocess.run(
    [python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))'],
    check=True,
    capture_output=True,
    text=True,
  ).stdout.strip()
  options = ['--no-deps', '--quiet', f'--target={site}']
  subprocess.run([sys.executable, '-m', 'pip', 'install', *options, str(wheel)], check=True)
  # Paths of PYTHONPATH are searched without their .pth files, so an editable install is not found.
  dependencies = sysconfig.get_path('purelib')

  def run(*arguments, cwd):
    return _run(python, *arguments, cwd=cwd, PYTHONPATH=dependencies)

  run.python, run.site, run.dependencies = python, site, dependencies
  return run


@pytest.mark.slow
def test_the_wheel_is_used_and_not_the_checkout(installed, tmp_path):
  code = 'import sphinx_jax, sphinx_jax.configs.mini as m; print(sphinx_jax.__file__, m.__file__)'
  done = subprocess.run(
    [installed.python, '-P', '-c', code],
    cwd=tmp_path,
    env=os.environ | {'PYTHONPATH': installed.dependencies},
    check=True,
    capture_output=True,
    text=True,
  )
  assert done.stdout.count(installed.site) == 2, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('name', ENTRY_POINTS)
def test_every_entry_point_shows_its_help(name, installed, tmp_path):
  done = installed(f'sphinx_jax.{name}', '--help', cwd=tmp_path)
  assert '--' in done.stdout and 'Traceback' not in done.stderr, done.stderr


@pytest.mark.slow
def test_a_shipped_config_is_found_by_name(installed, tmp_path):
  done = installed(
    'sphinx_jax.recipe', '--config=mini:quick', '--config.evaluate.examples=x', cwd=tmp_path
  )
  assert done.returncode == 2 and 'config.evaluate.examples=x' in done.stderr


@pytest.mark.slow
def test_a_copy_of_forkme_trains_with_the_installed_package(installed, tmp_path):
  with tarfile.open(OLD_RUN) as archive:
    archive.extractall(tmp_path, filter='data')
  shutil.copy(FORKME, tmp_path / 'mine.py')
  done = installed(
    'sphinx_jax.train',
    '--config=mine.py:data.jsonl,run',
    '--config.steps=2',
    '--config.batch.size=2',
    '--config.batch.seq_len=64',
    '--workdir=mine',
    cwd=tmp_path,
  )
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'mine' / 'checkpoints' / '2').is_dir()
