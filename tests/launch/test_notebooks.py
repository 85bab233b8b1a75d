"""The notebooks run from the first cell to the last as they are, at reduced lengths."""

import importlib.util
import os
import pathlib
import re
import sys
import types

import nbclient
import nbformat
import pytest

from tests import xla

ROOT = pathlib.Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / 'launch').glob('*.ipynb'))


def load_script():
  """launch/notebooks.py, which is no module of the package."""
  spec = importlib.util.spec_from_file_location('notebooks', ROOT / 'launch' / 'notebooks.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.fixture
def execute(finished_recipe, monkeypatch):
  """Runs a notebook: [(source, printed text, number of images), ...] of its code cells."""
  monkeypatch.setenv('SPHINX_JAX_QUICK', '1')
  monkeypatch.setenv('SPHINX_JAX_WORKDIR', str(finished_recipe.parent))
  monkeypatch.setenv('XLA_FLAGS', xla.flags())

  def run(name, folder):
    book = nbformat.read(ROOT / 'launch' / name, as_version=4)
    client = nbclient.NotebookClient(
      book, timeout=1800, kernel_name='python3', resources={'metadata': {'path': str(folder)}}
    )
    client.execute()
    cells = []
    for cell in book.cells:
      if cell.cell_type != 'code':
        continue
      texts = [
        output.get('text', '') or output.get('data', {}).get('text/plain', '')
        for output in cell.outputs
      ]
      images = sum('image/png' in output.get('data', {}) for output in cell.outputs)
      cells.append((cell.source, ''.join(texts), images))
    return cells

  return run


# The notebooks are started as a reader may start them: in the root, and in launch/.
@pytest.mark.parametrize(
  'name, folder, images, expected',
  [
    (
      'colab_recipe.ipynb',
      ROOT,
      6,
      {'sphinx_jax.recipe': 'step 8/8 report', 'metrics.json': '(blind ', 'model.chat': ' ->'},
    ),
    pytest.param(
      'colab_finetune.ipynb',
      ROOT / 'launch',
      5,
      {
        'sphinx_jax.load(checkpoint)': 'M parameters',
        'sphinx_jax.plan': 'headroom',
        'sphinx_jax.train': ': 4 steps; loss',
        'model.chat': 'What is this? ->',
        'tpu_queued.sh': 'queued-resources create mine',
      },
      marks=pytest.mark.slow,  # As the next one, which is quick.
    ),
    (
      'colab_lora.ipynb',
      ROOT / 'launch',
      1,
      {
        'sphinx_jax.plan': 'Largest batch at a time: ',
        'sphinx_jax.train': 'MB in the run of its adapters',
        'adapter=tuned': 'with them: ',
        'sphinx_jax.mix_weights': 'merged',
      },
    ),
  ],
)
def test_a_notebook_runs_as_written(name, folder, images, expected, execute, finished_recipe):
  cells = execute(name, folder)
  for source, text, _ in cells:
    assert not any(words in text for words in ('error:', 'Traceback', 'RuntimeWarning')), (
      f'{source}\n\n{text}'
    )
  for part, words in expected.items():
    source, text, _ = next(cell for cell in cells if part in cell[0])
    assert words in text, f'{source}\n\n{text}'
  assert 'not on Colab' in cells[0][1] and 'no TPU here' in cells[1][1]
  assert sum(count for _, _, count in cells) == images
  assert not (ROOT / 'launch' / 'workdir').exists()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_the_commands_of_a_notebook_exist_with_their_flags(path):
  book = nbformat.read(path, as_version=4)
  source = '\n'.join(cell.source for cell in book.cells if cell.cell_type == 'code')
  commands = re.findall(r'!python -m sphinx_jax\.(\w+) (.*)', source)
  assert commands
  for name, arguments in commands:
    text = (ROOT / 'sphinx_jax' / f'{name}.py').read_text()
    for flag in re.findall(r'--(\w+)', arguments):
      defined = re.search(rf"(?:flags\.DEFINE_\w+|cli\.define_paths?)\(\s*'{flag}'", text)
      assert defined or (flag == 'config' and 'cli.define_config' in text), f'{name}: --{flag}'


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_its_output(path):
  book = nbformat.read(path, as_version=4)
  nbformat.validate(book)
  cells = [cell for cell in book.cells if cell.cell_type == 'code']
  assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
  text = path.read_text()
  assert os.fspath(pathlib.Path.home()) not in text and '/content' not in text


def test_notebooks_and_readme_have_the_one_address():
  script = load_script()
  for name in script.NAMES:
    text = (ROOT / 'launch' / f'{name}.ipynb').read_text()
    assert script.notebook(text, name, script.REPOSITORY) == text
    address = 'https://github.com/someone/copy'
    named = script.notebook(text, name, address)
    assert f"REPOSITORY = '{address}'" in named
    assert f'someone/copy/blob/main/launch/{name}.ipynb' in named
    assert script.notebook(named, name, '') == script.notebook(text, name, '')
  readme = (ROOT / 'README.md').read_text()
  assert script.readme(readme, script.REPOSITORY) == readme
  assert 'colab-badge' not in script.readme(readme, '')
  assert script.readme(readme, address).count('colab-badge') == len(script.NAMES)


def first_cell(path):
  book = nbformat.read(path, as_version=4)
  return next(cell.source for cell in book.cells if cell.cell_type == 'code')


def test_all_notebooks_are_set_up_alike():
  assert len({first_cell(path) for path in NOTEBOOKS}) == 1


@pytest.fixture
def colab(tmp_path, monkeypatch):
  """Colab in the first cell: an empty folder, `google.colab`, a shell that records commands."""
  commands = []

  class Shell:
    def system(self, command):
      commands.append(command)
      if command.startswith('git clone'):
        (tmp_path / 'sphinx_jax').mkdir()
        (tmp_path / 'sphinx_jax' / 'setup.py').touch()

  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, 'path', list(sys.path))
  monkeypatch.setenv('PATH', os.environ['PATH'])
  for name in ('google', 'google.colab'):
    monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
  return commands, {'get_ipython': Shell}


def test_on_colab_the_first_cell_clones_and_installs_with_the_pinned_versions(colab, tmp_path):
  commands, names = colab
  cell = re.sub("REPOSITORY = '.*'", "REPOSITORY = ''", first_cell(NOTEBOOKS[0]))
  with pytest.raises(AssertionError, match='fill in REPOSITORY'):
    exec(cell, dict(names))
  assert not commands
  filled = cell.replace("REPOSITORY = ''", "REPOSITORY = 'https://example.com/copy'")
  for _ in range(2):  # A cell may be run twice.
    exec(filled, dict(names))
    assert pathlib.Path.cwd() == tmp_path / 'sphinx_jax'
  assert [command.split()[:2] for command in commands] == [
    ['git', 'clone'],
    ['python', '-m'],
    ['python', '-m'],
  ]
  assert 'https://example.com/copy' in commands[0]
  assert 'pip install' in commands[1] and '--constraint constraints.txt' in commands[1]
