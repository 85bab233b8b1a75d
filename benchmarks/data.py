"""What the data pipeline costs and wastes: `python -m benchmarks.data`; one line for each figure, with its aim.

Speed: images a second and core through the whole pipeline (files, JSON, tokens, packing, padded squares, batches),
beside bare `Image.open`, `convert`, `resize` of the same JPEGs in as many threads, in turns; the median of the rounds'
ratios counts.
Packing: useful positions at the rows of the pod configs, beside one example a row and beside what no packing can pass.
Start: a fresh process until the first batch, of 10^9 examples. Memory: resident, while batches run for --minutes.
All data are made here: JPEGs with edges, texture and noise, most 640 x 480, and a tokenizer trained on texts about them.
"""

import concurrent.futures
import io
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
from absl import flags
from PIL import Image

from sphinx_jax.configs import stage2
from sphinx_jax.core import cli, tensorflow as quiet_tensorflow
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import dialog, packing, tokenizer as tokenizers
from sphinx_jax.data.pipeline import Pipeline
from sphinx_jax.data.record import Source
from sphinx_jax.datasets import jsonl
from sphinx_jax.mix.tasks import Mixture

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parent.parent
SHAPES = ((640, 480), (640, 480), (480, 640), (640, 427))  # As most of COCO's.
BATCH = {'size': 8, 'seq_len': 2048, 'images': 6, 'window': 256}
VISUAL = {
  '224': 291,
  '1k': 1455,
  '2k': 2910,
}  # Tokens of an image at the scales of the pod configs.
# Task of stage 2 -> (median, spread) of the log-normal length of its text, in tokens: instruction, answer and template, with
# a few questions an image where datasets have several. An assumption, as no dataset is at hand.
TEXTS = {
  'caption': (50, 0.3),
  'vqa': (60, 0.35),
  'ocr': (60, 0.5),
  'rec': (75, 0.2),
  'reg': (75, 0.25),
  'counting': (45, 0.2),
  'grounded_caption': (150, 0.3),
  'detection': (220, 0.7),
  'relation': (120, 0.5),
  'layout': (250, 0.5),
  'pose': (330, 0.4),
  'dialog': (350, 0.6),
  'text': (450, 0.7),
}
WITHOUT_IMAGE = ('sharegpt', 'text')  # Entries of the mixture.
WORDS = (
  'a the is are on in of left right dog cat red blue two three man woman street car table old young near under '
  'holding person with and small large'
).split()


class Endless(Source):
  """The records of a source over and over, as if there were 10^9."""

  def __init__(self, source):
    self.name, self._source = source.name, source

  def __len__(self):
    return 10**9

  def __getitem__(self, index):
    return self._source[index % len(self._source)]


def draw_lengths(rng, count):
  """Lengths of texts int[count] and whether each example has an image bool[count], in the shares of stage 2."""
  mixture = stage2.get_config().mixture
  names = list(mixture)
  shares = np.array([mixture[name].weight for name in names])
  of = rng.choice(len(names), count, p=shares / shares.sum())
  median, spread = np.array([TEXTS[mixture[name].task] for name in names])[of].T
  lengths = np.maximum(median * np.exp(spread * rng.normal(size=count)), 20).astype(int)
  return lengths, np.array([name not in WITHOUT_IMAGE for name in names])[of]


def picture(rng):
  """A JPEG about as large as a photograph: soft areas, hard edges, fine noise."""
  width, height = SHAPES[rng.integers(len(SHAPES))]
  soft = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
    (width, height), Image.Resampling.BICUBIC
  )
  pixels = np.asarray(soft).astype(np.int16)
  for _ in range(12):
    x, y, w, h = rng.integers(0, width), rng.integers(0, height), *rng.integers(20, 200, 2)
    pixels[y : y + h, x : x + w] += rng.integers(-80, 80, 3, np.int16)
  pixels += rng.normal(0, 7, (height, width, 1)).astype(np.int16)
  file = io.BytesIO()
  Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, 'JPEG', quality=90)
  return file.getvalue()


def make_data(folder):
  """Pictures, conversations about them and a tokenizer."""
  rng = np.random.default_rng(0)
  lengths, has_image = draw_lengths(rng, 4 * FLAGS.images)
  lines = []
  for i, (length, pictured) in enumerate(zip(lengths, has_image)):
    words = ' '.join(
      rng.choice(WORDS, max(int(length) - 25, 1))
    )  # Most words are one token; the rest is the template's.
    turns = [{'from': 'human', 'value': 'What is on the left?'}, {'from': 'gpt', 'value': words}]
    lines.append(
      {'conversations': turns} | ({'image': f'{i % FLAGS.images}.jpg'} if pictured else {})
    )
  (folder / 'all.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  for i in Progress(range(FLAGS.images), what='pictures', unit='picture'):
    (folder / f'{i}.jpg').write_bytes(picture(rng))
  text = [turn['value'] for line in lines[:2000] for turn in line['conversations']]
  (folder / 'tokenizer.model').write_bytes(
    tokenizers.train([*text, dialog.SYSTEM, 'Human: Assistant:'], 400)
  )


def open_pipeline(folder, size, batch, threads):
  source = Endless(jsonl.open_source({'path': str(folder / 'all.jsonl')}))
  return Pipeline(
    {'dialog': source},
    {'dialog': 1},
    tokenizers.load(folder / 'tokenizer.model'),
    dialog.Template(''),
    batch,
    VISUAL['224'],
    size,
    threads=threads,
  )


def timed(images):
  """Images a second, by the clock and by the time of this process on all cores: `images` runs and gives their number."""
  begin, busy = time.perf_counter(), time.process_time()
  number = images()
  return number / (time.perf_counter() - begin), number / (time.process_time() - busy)


def pipeline_speed(folder, size, threads):
  """`timed`, over whole windows, so that as many examples are read as are given out."""

  def images(last):
    number = position = 0
    while position < last * BATCH['window']:
      batch, position = next(batches)
      number += int((batch['visual_index'] >= 0).sum()) // VISUAL['224']
    return number

  with open_pipeline(folder, size, BATCH, threads).batches() as batches:
    images(3)
    return timed(lambda: images(3 + FLAGS.windows))


def bare_speed(folder, size, threads):
  """`timed`: decode and resize, and nothing else."""

  def read(path):
    with Image.open(path) as image:
      return np.asarray(image.convert('RGB').resize((size, size), Image.Resampling.BICUBIC))

  def images():
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      return sum(1 for _ in pool.map(read, paths))

  paths = [folder / f'{i % FLAGS.images}.jpg' for i in range(FLAGS.windows * BATCH['window'])]
  return timed(images)


def report_speed(folder, threads):
  for size in (336, 448):
    rounds = [
      (pipeline_speed(folder, size, threads), bare_speed(folder, size, threads))
      for _ in range(FLAGS.rounds)
    ]
    ours, bare = (statistics.median(speeds[i][0] for speeds in rounds) / threads for i in (0, 1))
    clock, busy = (sorted(ours[i] / bare[i] for ours, bare in rounds) for i in (0, 1))
    print(
      f'speed, {size} pixels: {ours:.1f} images a second and core, bare decode and resize {bare:.1f}: '
      f'{statistics.median(clock):.0%} of it (rounds {clock[0]:.0%} to {clock[-1]:.0%}; aim 85 %); '
      f'by time on the cores {statistics.median(busy):.0%}',
      flush=True,
    )


def report_packing():
  for scale, visual in VISUAL.items():
    rng, batch = np.random.default_rng(0), stage2.get_config(f'7b,{scale}').batch
    positions = examples = rows = least = 0
    for _ in range(8):
      lengths, has_image = draw_lengths(rng, batch.window)
      lengths = lengths + visual * has_image
      fit = lengths <= batch.seq_len
      lengths, has_image = lengths[fit], has_image[fit]
      positions, examples = positions + int(lengths.sum()), examples + len(lengths)
      rows += len(packing.plan(lengths.tolist(), has_image.tolist(), batch.seq_len, batch.images))
      least += max(lengths.sum() / batch.seq_len, has_image.sum() / batch.images)
    useful, plain, bound = (
      positions / (count * batch.seq_len) for count in (rows, examples, least)
    )
    print(
      f'packing, {scale}: rows of {batch.seq_len}, {batch.images} images, windows of {batch.window}: {useful:.1%} useful, '
      f'one example a row {plain:.1%}, no packing over {bound:.1%} (aim 97 %)',
      flush=True,
    )


def report_order():
  """A window of the order of 25 tasks of 10^9 examples each, with changing weights."""
  weights = list(range(5, 30))
  for position in (0, 10**9, 10**12):
    begin = time.perf_counter()
    mixture = Mixture(
      weights,
      [10**9] * len(weights),
      stages=[(10**8 * i, weights[i:] + weights[:i]) for i in (1, 2, 3)],
    )
    mixture.lookup(position + np.arange(1024))
    print(
      f'order, position {position:.0e}: {1e3 * (time.perf_counter() - begin):.0f} ms for 1024 examples (aim under 5 s)'
    )


def report_start(folder, threads):
  for position in (0, 10**9, 10**12):
    command = [
      sys.executable,
      '-m',
      'benchmarks.data',
      f'--first_batch={position}',
      f'--workdir={folder}',
      f'--threads={threads}',
    ]
    begin = time.perf_counter()
    said = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    loading, first = map(float, said.split())
    print(
      f'first batch, position {position:.0e}: {first:.1f} s (aim under 5 s) after {loading:.1f} s for the import '
      f'of TensorFlow; the whole process {time.perf_counter() - begin:.1f} s',
      flush=True,
    )


def first_batch(folder, position, threads):
  """Prints the seconds that TensorFlow takes to be imported, and those from the sources to the first batch."""
  begin = time.perf_counter()
  quiet_tensorflow.load()
  print(time.perf_counter() - begin)
  begin = time.perf_counter()
  with open_pipeline(folder, 336, BATCH | {'window': 1024}, threads).batches(position) as batches:
    next(batches)
    print(time.perf_counter() - begin)


def resident():
  """MiB."""
  return int(re.search(r'VmRSS:\s+(\d+)', pathlib.Path('/proc/self/status').read_text())[1]) / 1024


def report_memory(folder, threads):
  begin, samples = time.monotonic(), []
  with (
    open_pipeline(folder, 336, BATCH, threads).batches() as batches,
    Progress(total=int(60 * FLAGS.minutes), what='memory', unit='s') as bar,
  ):
    while (seconds := time.monotonic() - begin) < 60 * FLAGS.minutes:
      next(batches)
      while len(samples) <= seconds:  # One a second.
        samples.append(resident())
        bar.update()
  parts = [statistics.median(part) for part in np.array_split(samples, 5)]
  shown = ', '.join(f'{part:.0f}' for part in parts)
  print(
    f'memory, {FLAGS.minutes:g} minutes: medians of its fifths {shown} MiB; from the second to the last '
    f'{parts[4] - parts[1]:+.0f} MiB, {parts[4] / parts[1] - 1:+.1%} (aim flat); most {max(samples):.0f} MiB'
  )


def main():
  threads = FLAGS.threads or len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(FLAGS.workdir or temporary).absolute()
    if FLAGS.first_batch is not None:
      return first_batch(folder, FLAGS.first_batch, threads)
    folder.mkdir(parents=True, exist_ok=True)
    make_data(folder)
    report_order()
    report_packing()
    report_start(folder, threads)
    report_speed(folder, threads)
    if FLAGS.minutes:
      report_memory(folder, threads)


if __name__ == '__main__':
  flags.DEFINE_integer('images', 256, 'JPEGs that are made.', lower_bound=1)
  flags.DEFINE_integer(
    'windows', 6, f'Windows of {BATCH["window"]} examples for one speed.', lower_bound=1
  )
  flags.DEFINE_integer('rounds', 5, 'Of speed, of which the median counts.', lower_bound=1)
  flags.DEFINE_integer('threads', None, 'That read and decode; one for each core by default.')
  flags.DEFINE_float('minutes', 10.0, 'How long memory is watched; 0 leaves it out.', lower_bound=0)
  flags.DEFINE_string('workdir', None, 'Where the data lie; a temporary folder by default.')
  flags.DEFINE_integer(
    'first_batch',
    None,
    'For the benchmark itself: prints the seconds to the first batch from here.',
  )
  cli.run(main)
