import pytest

from sphinx_jax.serving import engine as engines
from tests.serving import small


@pytest.fixture(scope='session')
def engine():
  """The engine of the tiny model, which all tests share."""
  engine = engines.Engine(small.model(), small.ROWS, small.LENGTH)
  engine.warm_up()
  engine.start()
  yield engine
  engine.stop()
