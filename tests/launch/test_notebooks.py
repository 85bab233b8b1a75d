"""The notebooks run from the first cell to the last as they are, at reduced lengths."""

import os
import pathlib
import sys
import types

import nbclient
import nbformat
import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
NOTEBOOKS = sorted((ROOT / 'launch').glob('*.ipynb'))

# What takes time in `mini.py:quick` is compiling for every task and saving after every update.
SHORTER = ' '.join(['--config.evaluate.examples=4', '''--config.evaluate.tasks="('detection', 'vqa')"''',
                    '--config.mix.coefficients="(0.0, 0.5, 1.0)"',
                    *(f'--config.{stage}.{what}=8' for stage in ('real', 'synthetic', 'stage2') for what in ('eval_every', 'checkpoint.every'))])


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp('notebooks')


def execute(name, workdir, folder, monkeypatch):
  """The outputs of a notebook's cells as one text, and how many pictures they show."""
  monkeypatch.setenv('SPHINX_JAX_QUICK', SHORTER)
  monkeypatch.setenv('SPHINX_JAX_WORKDIR', str(workdir))
  monkeypatch.delenv('XLA_FLAGS', raising=False)  # One device, as on the reader's machine.
  book = nbformat.read(ROOT / 'launch' / name, as_version=4)
  nbclient.NotebookClient(book, timeout=600, kernel_name='python3', resources={'metadata': {'path': str(folder)}}).execute()
  outputs = [output for cell in book.cells if cell.cell_type == 'code' for output in cell.outputs]
  text = ''.join(output.get('text', '') or output.get('data', {}).get('text/plain', '') for output in outputs)
  return text, sum('image/png' in output.get('data', {}) for output in outputs)


# In this order: the second goes on with the run that the first made.
@pytest.mark.parametrize('name, folder, pictures, said', [
    ('colab_recipe.ipynb', ROOT, 3 + 3, ['step 7/7 report', 'detection', '(blind ']),
    ('colab_finetune.ipynb', ROOT / 'launch', 2 + 3, ['M parameters', 'GiB', 'What is this? ->', 'queued-resources create mine'])])
def test_a_notebook_runs_as_written(name, folder, pictures, said, workdir, monkeypatch):
  text, shown = execute(name, workdir, folder, monkeypatch)
  assert 'error:' not in text and 'Traceback' not in text, text
  assert all(words in text for words in said), text
  assert 'not on Colab' in text and 'no TPU here' in text
  assert shown == pictures
  assert (workdir / 'quick' / 'stage2' / 'done.json').exists()
  assert not (ROOT / 'launch' / 'workdir').exists()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_what_it_printed(path):
  book = nbformat.read(path, as_version=4)
  nbformat.validate(book)
  cells = [cell for cell in book.cells if cell.cell_type == 'code']
  assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
  assert os.fspath(pathlib.Path.home()) not in path.read_text() and '/content' not in path.read_text()


def first_cell(path):
  return next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code')


def test_both_notebooks_are_set_up_alike():
  assert len({first_cell(path) for path in NOTEBOOKS}) == 1


@pytest.fixture
def colab(tmp_path, monkeypatch):
  """Colab as the first cell sees it: an empty folder, `google.colab`, and a shell, of which the commands are returned."""
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
  cell = first_cell(NOTEBOOKS[0])
  with pytest.raises(AssertionError, match='fill in REPOSITORY'):
    exec(cell, dict(names))
  assert not commands
  filled = cell.replace("REPOSITORY = ''", "REPOSITORY = 'https://example.com/copy'")
  for _ in range(2):  # A cell may be run twice.
    exec(filled, dict(names))
    assert pathlib.Path.cwd() == tmp_path / 'sphinx_jax'
  assert [command.split()[:2] for command in commands] == [['git', 'clone'], ['python', '-m'], ['python', '-m']]
  assert 'https://example.com/copy' in commands[0]
  assert 'pip install' in commands[1] and '--constraint constraints.txt' in commands[1]
