"""Imports only point down: a package imports packages of lower layers, never its own layer or above."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# From the bottom; packages on one line do not import each other.
LAYERS = [
  {'core'},
  {'mix', 'parallel'},
  {'data', 'models'},
  {'training'},
  {'checkpoint', 'planning'},
  {'tasks'},
  {'miniworld'},
  {'datasets'},
  {'generate'},
  {'evaluation', 'preparation'},
  {'report'},
]
LAYER = {package: number for number, packages in enumerate(LAYERS) for package in packages}
FILES = sorted((ROOT / 'sphinx_jax').rglob('*.py'))
HEAVY = {'tensorflow', 'tensorflow_datasets', 'torch', 'matplotlib'}


def _imports(file):
  """Full dotted names that a file imports, at any depth of it."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _package(file):
  parts = file.relative_to(ROOT / 'sphinx_jax').parts
  return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_package_imports_only_layers_below(file):
  package = _package(file)
  if package is None:  # An entry point may import every package.
    return
  assert package in LAYER, f'{package} has no layer'
  for name in _imports(file):
    if name.startswith('sphinx_jax.'):
      other = name.split('.')[1]
      assert other == package or LAYER.get(other, len(LAYERS)) < LAYER[package], (
        f'{file} imports {name}'
      )
    assert not name.startswith(('configs', 'tests')), f'{file} imports {name}'


@pytest.mark.parametrize(
  'file',
  [f for f in FILES if _package(f) in ('core', 'mix', 'parallel', 'models')],
  ids=lambda file: str(file.relative_to(ROOT)),
)
def test_the_lower_layers_do_without_heavy_packages(file):
  heavy = {name.split('.')[0] for name in _imports(file)} & HEAVY
  assert not heavy or file.relative_to(ROOT).parts[1:] == ('core', 'tensorflow.py'), (
    f'{file} imports {heavy}'
  )
