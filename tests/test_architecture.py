"""The house keeps its floors: a room imports only floors below it, and rooms on one floor never meet."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FLOORS = [{'core'}, {'mix'}, {'parallel'}, {'data', 'models'}, {'checkpoint', 'training'}, {'generate'},
          {'evaluate', 'report', 'planning'}]
ROOMS = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
FILES = sorted((ROOT / 'sphinx_jax').rglob('*.py'))
HEAVY = {'tensorflow', 'tensorflow_datasets', 'torch', 'matplotlib'}


def _imports(file):
  """Full dotted names that a file imports, at any depth of it."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.level == 0:
      yield from (f'{node.module}.{alias.name}' for alias in node.names)


def _room(file):
  parts = file.relative_to(ROOT / 'sphinx_jax').parts
  return parts[0] if len(parts) > 1 else None


@pytest.mark.parametrize('file', FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_a_room_imports_only_floors_below(file):
  room = _room(file)
  if room is None or file.name == '__main__.py':  # A door may enter every room.
    return
  assert room in ROOMS, f'{room} has no floor'
  for name in _imports(file):
    if name.startswith('sphinx_jax.'):
      other = name.split('.')[1]
      assert other == room or ROOMS.get(other, len(FLOORS)) < ROOMS[room], f'{file} imports {name}'
    assert not name.startswith(('configs', 'tests')), f'{file} imports {name}'


@pytest.mark.parametrize('file', [f for f in FILES if _room(f) in ('core', 'mix', 'parallel', 'models')],
                         ids=lambda file: str(file.relative_to(ROOT)))
def test_the_lower_floors_do_without_heavy_packages(file):
  heavy = {name.split('.')[0] for name in _imports(file)} & HEAVY
  assert not heavy or file.relative_to(ROOT).parts[1:] == ('mix', 'tasks.py'), f'{file} imports {heavy}'


def test_files_and_functions_stay_short():
  for file in FILES:
    text = file.read_text()
    assert len(text.splitlines()) <= 400, f'{file} has over 400 lines'
    for node in ast.walk(ast.parse(text)):
      if isinstance(node, ast.FunctionDef):
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = body[-1].end_lineno - body[0].lineno + 1 if body else 0
        assert lines <= 60, f'{file}: {node.name} has {lines} lines'
