"""The quick stand-in of `python -m benchmarks.serve --model=mini --soak=10000`."""

import asyncio

from benchmarks import serve
from tests.serving import small


def test_many_requests_cancelled_and_hostile_ones_among_them(engine):
  """None is lost, and every answer is that of the same request alone."""
  options = dict(model='mini', tokens='2,12')
  with small.serving(engine, name='random', queue=24) as port:
    done = asyncio.run(serve.soak(port, options, 250, workers=40))
  found = done['found']
  assert {name for name in found if not name.startswith(('hostile', 'cancelled', 'no room'))} <= {
    'answered, same',
    'answered, tie',
  }, found
  assert sum(count for name, count in found.items() if not name.startswith('no room')) == 250
  assert found['answered, same'] > 180 and found['hostile, refused'] > 3
  assert found['cancelled in the stream'] > 3 and found['no room, sent again'] > 0
  assert 'hostile, NOT refused' not in found
  assert engine.running == engine.waiting == 0
