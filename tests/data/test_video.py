"""Videos as images: evenly spaced frames, and files that cannot be read."""

import io
import json

import av
import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import video
from sphinx_jax.data.record import BadExample
from sphinx_jax.datasets import conversations, jsonl
from sphinx_jax.datasets.jsonl import Jsonl

COUNT = 30


def write(path, codec='mpeg4'):
  """A video of 3 seconds in which frame i is gray with the value 8 i."""
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=10)
    stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, 'yuv420p', 12
    for i in range(COUNT):
      pixels = np.full((48, 64, 3), 8 * i, np.uint8)
      container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format='rgb24')))
    container.mux(stream.encode())
  return path


def numbers(encoded):
  """The numbers of the frames."""
  return [round(np.asarray(Image.open(io.BytesIO(data))).mean() / 8) for data in encoded]


@pytest.mark.parametrize(
  'name, codec',
  [('a.mp4', 'libx264'), ('a.mkv', 'libx264'), ('a.webm', 'libvpx-vp9'), ('a.avi', 'mpeg4')],
)
def test_frames_are_evenly_spaced(tmp_path, name, codec):
  path = write(tmp_path / name, codec)
  assert numbers(video.frames(path, 1)) == [15]
  assert numbers(video.frames(path, 4)) == [3, 11, 18, 26]
  assert numbers(video.frames(path, 60))[:20] == [i // 2 for i in range(20)]


@pytest.mark.parametrize('name', ['a.mp4', 'a.mkv', 'a.avi'])
@pytest.mark.parametrize('share', [0, 0.01, 0.4, 0.7])
def test_truncated_files_are_bad_examples(tmp_path, name, share):
  data = write(tmp_path / name).read_bytes()
  (tmp_path / name).write_bytes(data[: int(len(data) * share)])
  with pytest.raises(BadExample, match=name) as caught:
    video.frames(tmp_path / name, 8)
  assert caught.value.reason == 'unreadable video'


def test_a_video_of_an_item_becomes_images_in_place_of_its_mark(tmp_path):
  write(tmp_path / 'a.mp4')
  turns = [{'from': 'human', 'value': '<video>\nWhat?'}, {'from': 'gpt', 'value': 'Light.'}]
  lines = [
    {'video': 'a.mp4', 'frames': 2, 'conversations': turns},
    {'video': 'a.mp4', 'conversations': turns},
    {'video': 'gone.mp4', 'conversations': turns},
  ]
  (tmp_path / 'my.jsonl').write_text('\n'.join(map(json.dumps, lines)))
  source = Jsonl(tmp_path / 'my.jsonl', frames=3)
  assert numbers(source[0].images) == [7, 22]
  assert source[0].turns == (('<image><image>What?', 'Light.'),)
  assert numbers(source[1].images) == [5, 15, 25]
  with pytest.raises(BadExample, match='gone.mp4') as caught:
    source[2]
  assert caught.value.reason == 'missing video'


def test_an_entry_without_a_number_of_frames_has_the_default(tmp_path):
  write(tmp_path / 'a.mp4')
  turns = [{'from': 'human', 'value': 'What?'}, {'from': 'gpt', 'value': 'Light.'}]
  (tmp_path / 'my.jsonl').write_text(json.dumps({'video': 'a.mp4', 'conversations': turns}))
  for entry in ({}, {'frames': None}):
    source = jsonl.open_source({'path': 'my.jsonl', **entry}, tmp_path)
    assert len(source[0].images) == conversations.FRAMES


def test_a_name_that_no_file_can_have_is_a_bad_example(tmp_path):
  with pytest.raises(BadExample) as caught:
    video.frames(tmp_path / ('a' * 300), 1)
  assert caught.value.reason == 'missing video'


def test_without_pyav_the_run_stops_with_what_to_install(tmp_path, monkeypatch):
  monkeypatch.setitem(__import__('sys').modules, 'av', None)
  with pytest.raises(SphinxError, match=r"pip install 'sphinx_jax\[video\]'"):
    video.frames(tmp_path / 'a.mp4', 1)
