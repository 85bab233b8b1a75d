"""The command lines of launch/local.sh, with a fake python."""

import pytest


@pytest.mark.parametrize(
  'flags, arguments',
  [
    ((), '--config=mini --workdir=workdir/mini'),
    (('--quick',), '--config=mini:quick --workdir=workdir/quick'),
    (
      ('--dataset_files', '--quick', '--config.seed=1'),
      '--config=mini:quick,dataset_files --workdir=workdir/quick_dataset_files --config.seed=1',
    ),
    (('--dataset_files', '--workdir=/a'), '--config=mini:dataset_files --workdir=/a'),
    (('--official',), '--config=mini:dataset_files --workdir=workdir/official'),
  ],
)
def test_flags_choose_the_config_and_the_workdir(cloud, flags, arguments):
  code, _, messages = cloud.launch('local.sh', *flags)
  assert code == 0, messages
  assert (cloud.fake / 'trained').read_text() == f'-m sphinx_jax.recipe {arguments}\n'
  assert ('--official is now --dataset_files' in messages) == ('--official' in flags)


def test_help_lists_the_flags(cloud):
  code, output, _ = cloud.launch('local.sh', '--help')
  assert code == 0
  assert all(flag in output for flag in ('--quick', '--dataset_files', '--workdir', '--config.x'))


def test_an_environment_with_more_extras_serves_as_well(cloud):
  """Whoever ran the tests has what the demo needs; after a change all is installed again."""
  for extras, times in (
    ('dev,convert,serve', 1),
    ('serve', 1),
    ('dev', 1),
    ('plan', 2),
    ('serv', 3),
  ):
    code, _, messages = cloud.launch('local.sh', EXTRAS=extras)
    assert code == 0, messages
    assert len((cloud.fake / 'pip').read_text().splitlines()) == times, extras
  setup = cloud.repository / 'setup.py'
  setup.write_text(setup.read_text() + '# changed')
  assert cloud.launch('local.sh', EXTRAS='serve')[0] == 0
  assert len((cloud.fake / 'pip').read_text().splitlines()) == 4
