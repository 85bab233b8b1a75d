import pytest

from sphinx_jax.core import errors, tables


def test_a_name_is_imported_when_looked_up_and_not_before():
  table = tables.Table('thing', {'path': 'os.path:join', 'broken': 'no_such_module:x'})
  assert table['path']('a', 'b') == 'a/b'
  assert 'broken' in table and list(table) == ['path', 'broken']
  with pytest.raises(ModuleNotFoundError):
    table['broken']


def test_an_unknown_name_is_answered_with_choices_and_the_nearest():
  table = tables.Table('encoder', {'clip': 'a:b', 'convnext': 'a:b'})
  with pytest.raises(
    errors.SphinxError,
    match="encoder: got 'convnex', expected one of clip, convnext; did you mean 'convnext'",
  ):
    table['convnex']
  assert 'convnex' not in table
