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

# What takes time in `mini.py:quick` is compiling, of layers one by one and for every task, and saving after every update.
SHORTER = ' '.join(
  [
    '--config.evaluate.examples=4',
    '''--config.evaluate.tasks="('detection', 'vqa')"''',
    '--config.mix.coefficients="(0.0, 0.5, 1.0)"',
    *(
      f'--config.{stage}.{setting}'
      for stage in ('real', 'synthetic', 'stage2')
      for setting in ('eval_every=8', 'checkpoint.every=8', 'model.scan_unroll=1')
    ),
  ]
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return tmp_path_factory.mktemp('notebooks')


@pytest.fixture
def execute(workdir, monkeypatch):
  """Runs a notebook of launch/ in a folder: [(source, text it printed, pictures it showed), ...] of its code cells."""
  monkeypatch.setenv('SPHINX_JAX_QUICK', SHORTER)
  monkeypatch.setenv('SPHINX_JAX_WORKDIR', str(workdir))
  monkeypatch.delenv('XLA_FLAGS', raising=False)  # One device, as on the reader's machine.

  def run(name, folder):
    book = nbformat.read(ROOT / 'launch' / name, as_version=4)
    place = {'metadata': {'path': str(folder)}}
    nbclient.NotebookClient(book, timeout=1800, kernel_name='python3', resources=place).execute()
    cells = []
    for cell in (cell for cell in book.cells if cell.cell_type == 'code'):
      text = ''.join(
        output.get('text', '') or output.get('data', {}).get('text/plain', '')
        for output in cell.outputs
      )
      cells.append(
        (cell.source, text, sum('image/png' in output.get('data', {}) for output in cell.outputs))
      )
    return cells

  return run


# In this order: the second goes on with the run of the first. They are started as a reader may: in the root, in launch/.
@pytest.mark.parametrize(
  'name, folder, pictures, said',
  [
    (
      'colab_recipe.ipynb',
      ROOT,
      6,
      {'sphinx_jax.recipe': 'step 7/7 report', 'metrics.json': '(blind ', 'model.chat': ' ->'},
    ),
    (
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
    ),
  ],
)
def test_a_notebook_runs_as_written(name, folder, pictures, said, execute, workdir):
  cells = execute(name, folder)
  for source, text, _ in cells:
    assert not any(words in text for words in ('error:', 'Traceback', 'RuntimeWarning')), (
      f'{source}\n\n{text}'
    )
  for part, words in said.items():
    source, text, _ = next(cell for cell in cells if part in cell[0])
    assert words in text, f'{source}\n\n{text}'
  assert 'not on Colab' in cells[0][1] and 'no TPU here' in cells[1][1]
  assert sum(shown for _, _, shown in cells) == pictures
  assert (workdir / 'quick' / 'stage2' / 'done.json').exists() and not (
    ROOT / 'launch' / 'workdir'
  ).exists()


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_without_what_it_printed(path):
  book = nbformat.read(path, as_version=4)
  nbformat.validate(book)
  cells = [cell for cell in book.cells if cell.cell_type == 'code']
  assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
  assert (
    os.fspath(pathlib.Path.home()) not in path.read_text() and '/content' not in path.read_text()
  )


def first_cell(path):
  return next(
    cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == 'code'
  )


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
  assert [command.split()[:2] for command in commands] == [
    ['git', 'clone'],
    ['python', '-m'],
    ['python', '-m'],
  ]
  assert 'https://example.com/copy' in commands[0]
  assert 'pip install' in commands[1] and '--constraint constraints.txt' in commands[1]
