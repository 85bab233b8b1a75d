import pytest

from sphinx_jax.checkpoint import identity


@pytest.mark.parametrize('name', ['weights.pth', ''])
def test_weights_that_changed_in_a_file_or_a_folder_have_another_identity(tmp_path, name):
  (tmp_path / 'weights.pth').write_text('1')
  before = identity.of_weights(str(tmp_path / name))
  (tmp_path / 'weights.pth').write_text('2')
  assert identity.of_weights(str(tmp_path / name)) != before
  adapter = tmp_path / 'adapter'
  adapter.mkdir()
  (adapter / 'adapter_config.json').write_text('{}')
  place = str(tmp_path / name)
  adapted = identity.of_weights(place, str(adapter))
  assert adapted == identity.of_weights(f'{place}+{adapter}')
  assert adapted != identity.of_weights(place)
