"""Quick stand-ins of `python -m benchmarks.serve --model=mini` with --soak and --flood=10000."""

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


def test_connections_at_once_are_answered_or_asked_to_wait(engine):
  options = dict(model='mini', tokens='2,12')
  with small.serving(engine, name='random', queue=24) as port:
    found = asyncio.run(serve.flood(port, options, 400))
  assert set(found) == {'200', '429'} and found.total() == 400
  assert found['200'] >= 24 + engine.batch.rows  # All that had a place.
  assert engine.running == engine.waiting == 0
