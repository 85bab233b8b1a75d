import itertools

from sphinx_jax.core import progress


def test_a_line_of_a_log_file_has_the_rate_and_the_time_left(monkeypatch, caplog):
  seconds = itertools.count(0, 60)
  monkeypatch.setattr(progress.time, 'monotonic', lambda: float(next(seconds)))
  monkeypatch.setattr(progress.log, 'propagate', True)
  with caplog.at_level('INFO'):
    with progress.Progress(total=1000, start=400, what='answers', unit='images') as shown:
      shown.update(60)
  # 60 of the 600 that were left, in the 180 s of the clock's readings: 0.333 a second.
  assert 'answers: 460/1000 images, 0.333/s, 180 s, 27:00 left' in caplog.messages[0]
  with caplog.at_level('INFO'), progress.Progress(total=2, what='done', unit='images') as shown:
    shown.update(2)
  assert 'left' not in caplog.messages[-1]
