"""The command line of launch/demo.sh, with a fake python."""


def test_it_serves_the_model_of_the_recipe(cloud):
  for workdir, flags in (('workdir/mini', ()), ('other', ('--workdir=other', '--port=1'))):
    (cloud.repository / workdir / 'stage2').mkdir(parents=True)
    code, _, messages = cloud.launch('demo.sh', *flags)
    assert code == 0, messages
    module, *arguments = (cloud.fake / 'trained').read_text().splitlines()[-1].split()[1:]
    assert module == 'sphinx_jax.serve'
    assert f'--checkpoint={workdir}/stage2' in arguments and '--model_name=mini' in arguments
    assert ('--port=1' in arguments) == bool(flags)


def test_it_names_the_command_that_makes_the_model(cloud):
  code, _, messages = cloud.launch('demo.sh')
  assert code == 2 and 'run bash launch/local.sh first' in messages


def test_help_lists_the_flags(cloud):
  code, output, _ = cloud.launch('demo.sh', '--help')
  assert code == 0 and '--workdir' in output and '--port' in output
