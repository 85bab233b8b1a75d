"""Videos as images: some frames, evenly spaced. Needs PyAV (the extra `video`)."""

import io
import os
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors
from sphinx_jax.data.record import BadExample

_MICROSECONDS = 1_000_000  # In a second; the unit of a container.


def frames(path: Path, count: int) -> list[bytes]:
  """Returns frames of a video: those in the middle of `count` stretches of equal duration.

  A video with fewer frames repeats some of them.

  Args:
    path: file of any format that FFmpeg reads.
    count: number of frames.

  Returns:
    `count` PNG files.

  Raises:
    BadExample: 'missing video', or 'unreadable video' for a file that is no video, is empty, or
      ends before its last frame.
    SphinxError: PyAV is not installed.
  """
  try:
    import av  # Most runs have no videos.
  except ImportError:
    raise errors.make(
      f"video '{path}'", 'no package av', 'PyAV', "run pip install 'sphinx_jax[video]'"
    ) from None
  if not os.path.isfile(path):  # Also false for a name that is too long.
    raise BadExample('missing video', f'{str(path)!r:.200} is not a file')
  try:
    with av.open(str(path)) as container:
      return _encoded_frames(container, count)
  except (av.FFmpegError, ValueError) as error:
    raise BadExample('unreadable video', f'{str(path)!r:.200}: {error}') from error


def _encoded_frames(container: Any, count: int) -> list[bytes]:
  """Frames of an `av.container.InputContainer`. Raises ValueError if it ends too early."""
  if not container.streams.video:
    raise ValueError('it has no pictures')
  stream = container.streams.video[0]
  stream.thread_type = 'AUTO'
  begin = stream.start_time or 0
  if stream.duration is not None:
    duration = stream.duration
  elif container.duration is not None:  # Matroska states the duration of the whole file alone.
    duration = container.duration / _MICROSECONDS / stream.time_base
  else:
    raise ValueError('its duration is not known')
  return [
    _frame_at(container, stream, begin + int((number + 0.5) * duration / count))
    for number in range(count)
  ]


def _frame_at(container: Any, stream: Any, time: int) -> bytes:
  """The frame that is shown at a time, in units of the stream."""
  container.seek(time, stream=stream)  # To the key frame before it.
  shown = None
  for frame in container.decode(stream):
    if shown is not None and frame.pts > time:
      break
    shown = frame
  else:
    usual = 1 / (stream.average_rate or 1) / stream.time_base
    if shown is None or time > shown.pts + 2 * (shown.duration or usual):
      raise ValueError('it ends too early')
  buffer = io.BytesIO()
  shown.to_image().save(buffer, 'PNG', compress_level=1)  # Fast, and without loss.
  return buffer.getvalue()
