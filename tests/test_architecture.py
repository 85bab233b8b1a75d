"""Imports only point down: a package imports only packages of lower layers."""

import ast
import pathlib
import re
from collections.abc import Iterator

import pytest

from sphinx_jax.models import families

ROOT = pathlib.Path(__file__).parent.parent
# From the lowest. Packages of one layer do not import each other.
LAYERS = [
  {'core'},
  {'mix', 'parallel'},
  {'data', 'models'},
  {'training'},
  {'checkpoint', 'planning'},
  {'tasks'},
  {'miniworld'},
  {'datasets'},
  {'generate', 'pretraining'},
  {'evaluation', 'preparation'},
  {'report'},
  {'serving'},
]
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
FILES = sorted((ROOT / 'sphinx_jax').rglob('*.py'))
CONFIGS = sorted((ROOT / 'configs').glob('*.py'))
ENTRY_POINTS = {
  file.stem
  for file in FILES
  if file.parent == ROOT / 'sphinx_jax' and "__name__ == '__main__'" in file.read_text()
}
HEAVY = {'tensorflow', 'tensorflow_datasets', 'torch', 'matplotlib'}


def _imports(file: pathlib.Path) -> Iterator[str]:
  """Yields the full dotted names that a file imports, also inside functions."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _package(file: pathlib.Path) -> str | None:
  """Returns the package of a file, or None for a file at the top of sphinx_jax."""
  parts = file.relative_to(ROOT / 'sphinx_jax').parts
  return parts[0] if len(parts) > 1 else None


def _name(file: pathlib.Path) -> str:
  return str(file.relative_to(ROOT))


@pytest.mark.parametrize('file', FILES, ids=_name)
def test_a_package_imports_only_layers_below(file):
  package = _package(file)
  if package is None:  # Entry points and run.py may import every package.
    return
  assert package in LAYER, f'{package} has no layer'
  for name in _imports(file):
    if name.startswith('sphinx_jax.'):
      other = name.split('.')[1]
      below = LAYER.get(other, len(LAYERS)) < LAYER[package]
      assert other == package or below, f'{file} imports {name}'
    assert not name.startswith(('configs', 'tests')), f'{file} imports {name}'


@pytest.mark.parametrize('file', [*FILES, *CONFIGS], ids=_name)
def test_nothing_imports_an_entry_point(file):
  assert {'train', 'recipe', 'convert'} <= ENTRY_POINTS
  for name in _imports(file):
    parts = name.split('.')
    is_entry_point = parts[0] == 'sphinx_jax' and parts[1:2] and parts[1] in ENTRY_POINTS
    assert not is_entry_point, f'{file} imports {name}'


@pytest.mark.parametrize(
  'file',
  [file for file in FILES if _package(file) in ('core', 'mix', 'parallel', 'models')],
  ids=_name,
)
def test_the_lower_layers_do_without_heavy_packages(file):
  heavy = {name.split('.')[0] for name in _imports(file)} & HEAVY
  is_exception = file == ROOT / 'sphinx_jax' / 'core' / 'tensorflow.py'
  assert not heavy or is_exception, f'{file} imports {heavy}'


# Files that describe one family: the table of dialog templates, and the official form of SPHINX.
OF_A_FAMILY = {
  'data/dialog.py',
  *(f'checkpoint/foreign/{name}.py' for name in ('assemble', 'export', 'sources')),
}
NAMES = re.compile('|'.join(name for name in families.FAMILIES if name != 'sphinx'), re.IGNORECASE)
# Sections that the model config of one family has and that of another has not.
SECTIONS = {'encoders', 'vision', 'perceiver'}


def _code(file: pathlib.Path) -> Iterator[str]:
  """Yields the names and texts of a file's code, without its docstrings and comments."""
  tree = ast.parse(file.read_text())
  prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
  for node in ast.walk(tree):
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose:
      yield node.value
    for field in ('id', 'attr', 'name', 'module', 'arg'):
      if isinstance(value := getattr(node, field, None), str):
        yield value


@pytest.mark.parametrize('file', [file for file in FILES if _package(file) != 'models'], ids=_name)
def test_only_models_know_which_family_they_are(file):
  if str(file.relative_to(ROOT / 'sphinx_jax')) in OF_A_FAMILY:
    return
  assert 'sphinx_jax.models.sphinx' not in _imports(file)
  for word in _code(file):
    assert not NAMES.search(re.sub(r'docs/\w+\.md', '', word)), (
      f'{file} names a model family: {word!r}'
    )
    assert word not in SECTIONS, f'{file} depends on the config of a model family: {word!r}'
