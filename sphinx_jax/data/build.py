"""The old name of the command `python -m sphinx_jax.prepare`."""

from sphinx_jax.core import renames

if __name__ == '__main__':
  renames.run_command('sphinx_jax.data.build')
