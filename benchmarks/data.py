"""Measures the data pipeline: `python -m benchmarks.data`. Each line has one figure and its target.

Speed: images per second and core of the whole pipeline (files, JSON, tokens, packing, padded
squares, batches). It is compared with bare `Image.open`, `convert` and `resize` of the same JPEGs
in as many threads. Both run in turns, and the median of the rounds' ratios counts.
Packing: share of useful positions with the batches of the pod configs, with one example per row,
and the upper bound of any packing.
Start: time of a fresh process until the first batch, of 10^9 examples.
Hosts: what each of 1 and 4 processes reads, and its CPU seconds, for its rows of the same batches.
Memory: resident memory while batches are made for --minutes.
All data are generated: JPEGs with edges, texture and noise, most of 640 x 480 pixels, and a
tokenizer that is trained on texts about them.
"""

import concurrent.futures
import io
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

import numpy as np
import psutil
from absl import flags
from PIL import Image

from sphinx_jax.configs import stage2
from sphinx_jax.core import cli, tensorflow
from sphinx_jax.core.progress import Progress
from sphinx_jax.data import dialog, packing, tokenizer as tokenizers
from sphinx_jax.data.pipeline import Pipeline, PipelineConfig
from sphinx_jax.data.record import Source
from sphinx_jax.datasets import jsonl
from sphinx_jax.mix.tasks import Mixture

FLAGS = flags.FLAGS
ROOT = pathlib.Path(__file__).parent.parent
SHAPES = ((640, 480), (640, 480), (480, 640), (640, 427))  # Like most images of COCO.
BATCH = {'batch_size': 8, 'seq_len': 2048, 'slots': 6, 'window': 256}
# Scale of the pod configs -> visual tokens of an image.
VISUAL = {'224': 291, '1k': 1455, '2k': 2910}
# Task of stage 2 -> (median, spread) of the log-normal length of its text in tokens: instruction,
# answer and template, with a few questions per image if datasets have several. These are
# assumptions, because no dataset is at hand.
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
  'a the is are on in of left right dog cat red blue two three man woman street car table old '
  'young near under holding person with and small large'
).split()


class Endless(Source):
  """Repeats the records of a source, as if it had 10^9."""

  def __init__(self, source):
    self.name, self._source = source.name, source

  def __len__(self):
    return 10**9

  def __getitem__(self, index):
    return self._source[index % len(self._source)]

  def outline(self, index, epoch):
    return self._source.outline(index % len(self._source), epoch)


def draw_lengths(rng, count):
  """Draws examples with the shares of stage 2: text lengths int[count], has image bool[count]."""
  mixture = stage2.get_config().mixture
  names = list(mixture)
  shares = np.array([mixture[name].weight for name in names])
  tasks = rng.choice(len(names), count, p=shares / shares.sum())
  median, spread = np.array([TEXTS[mixture[name].task] for name in names])[tasks].T
  lengths = np.maximum(median * np.exp(spread * rng.normal(size=count)), 20).astype(int)
  return lengths, np.array([name not in WITHOUT_IMAGE for name in names])[tasks]


def draw_jpeg(rng):
  """Returns a JPEG about as large as a photograph, with soft areas, hard edges and fine noise."""
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


def make_data(folder, images):
  """Writes images, conversations about them and a tokenizer."""
  rng = np.random.default_rng(0)
  lengths, has_image = draw_lengths(rng, 4 * images)
  lines = []
  for i, (length, pictured) in enumerate(zip(lengths, has_image)):
    # Most words are one token. The template has the other 25.
    words = ' '.join(rng.choice(WORDS, max(int(length) - 25, 1)))
    turns = [{'from': 'human', 'value': 'What is on the left?'}, {'from': 'gpt', 'value': words}]
    lines.append({'conversations': turns} | ({'image': f'{i % images}.jpg'} if pictured else {}))
  (folder / 'all.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  for i in Progress(range(images), what='images', unit='image'):
    (folder / f'{i}.jpg').write_bytes(draw_jpeg(rng))
  text = [turn['value'] for line in lines[:2000] for turn in line['conversations']]
  (folder / 'tokenizer.model').write_bytes(
    tokenizers.train([*text, dialog.SYSTEM, 'Human: Assistant:'], 400)
  )


def open_pipeline(folder, image_size, batch, threads, local_rows=None):
  source = Endless(jsonl.open_source({'path': str(folder / 'all.jsonl')}))
  config = PipelineConfig(
    **batch, visual_tokens=VISUAL['224'], image_size=image_size, threads=threads
  )
  tokenizer = tokenizers.load(folder / 'tokenizer.model')
  return Pipeline(
    {'dialog': source},
    {'dialog': 1},
    tokenizer,
    dialog.Template(''),
    config,
    local_rows=local_rows,
  )


def timed(images):
  """Runs `images`, which returns their number.

  Returns:
    (images per second of wall time, images per second of this process's CPU time on all cores).
  """
  begin, busy = time.perf_counter(), time.process_time()
  number = images()
  return number / (time.perf_counter() - begin), number / (time.process_time() - busy)


def pipeline_speed(folder, size, threads, windows):
  """`timed` for the pipeline, over whole windows, so that all examples that are read are used."""

  def images(last):
    number = position = 0
    while position < last * BATCH['window']:
      batch, position = next(batches)
      number += int((batch['visual_index'] >= 0).sum()) // VISUAL['224']
    return number

  with open_pipeline(folder, size, BATCH, threads).batches() as batches:
    images(3)
    return timed(lambda: images(3 + windows))


def bare_speed(folder, size, threads):
  """`timed` for decoding and resizing alone."""

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
      (pipeline_speed(folder, size, threads, FLAGS.windows), bare_speed(folder, size, threads))
      for _ in range(FLAGS.rounds)
    ]
    pipeline = statistics.median(clock for (clock, _), _ in rounds) / threads
    bare = statistics.median(clock for _, (clock, _) in rounds) / threads
    clock_ratios = sorted(ours[0] / bare[0] for ours, bare in rounds)
    cpu_ratios = [ours[1] / bare[1] for ours, bare in rounds]
    print(
      f'speed, {size} pixels: {pipeline:.1f} images per second and core; '
      f'bare decode and resize {bare:.1f}: {statistics.median(clock_ratios):.0%} of it '
      f'(rounds {clock_ratios[0]:.0%} to {clock_ratios[-1]:.0%}; target 85 %); '
      f'by CPU time {statistics.median(cpu_ratios):.0%}',
      flush=True,
    )


def report_packing():
  for scale, visual in VISUAL.items():
    rng, batch = np.random.default_rng(0), stage2.get_config(f'7b,{scale}').batch
    positions = examples = rows = fewest_rows = 0
    for _ in range(8):
      lengths, has_image = draw_lengths(rng, batch.window)
      lengths = lengths + visual * has_image
      fit = lengths <= batch.seq_len
      lengths, has_image = lengths[fit], has_image[fit]
      positions += int(lengths.sum())
      examples += len(lengths)
      rows += len(packing.plan(lengths.tolist(), has_image.tolist(), batch.seq_len, batch.images))
      fewest_rows += max(lengths.sum() / batch.seq_len, has_image.sum() / batch.images)
    useful, unpacked, bound = (
      positions / (count * batch.seq_len) for count in (rows, examples, fewest_rows)
    )
    print(
      f'packing, {scale}: rows of {batch.seq_len}, {batch.images} images, windows of '
      f'{batch.window}: {useful:.1%} useful (target 97 %), '
      f'one example per row {unpacked:.1%}, upper bound {bound:.1%}',
      flush=True,
    )


def report_order():
  """Times one window of the order of 25 tasks of 10^9 examples each, with changing weights."""
  weights = list(range(5, 30))
  for position in (0, 10**9, 10**12):
    begin = time.perf_counter()
    mixture = Mixture(
      weights,
      [10**9] * len(weights),
      stages=[(10**8 * i, weights[i:] + weights[:i]) for i in (1, 2, 3)],
    )
    mixture.lookup(position + np.arange(1024))
    milliseconds = 1e3 * (time.perf_counter() - begin)
    print(
      f'order, position {position:.0e}: {milliseconds:.0f} ms for 1024 examples (target under 5 s)'
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
    output = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True).stdout
    loading, first = map(float, output.split())
    print(
      f'first batch, position {position:.0e}: {first:.1f} s (target under 5 s) after '
      f'{loading:.1f} s for the import of TensorFlow; '
      f'the whole process {time.perf_counter() - begin:.1f} s',
      flush=True,
    )


def first_batch(folder, position, threads):
  """Prints the seconds of TensorFlow's import, and those from the sources to the first batch."""
  begin = time.perf_counter()
  tensorflow.load()
  print(time.perf_counter() - begin)
  begin = time.perf_counter()
  with open_pipeline(folder, 336, BATCH | {'window': 1024}, threads).batches(position) as batches:
    next(batches)
    print(time.perf_counter() - begin)


def report_hosts(folder):
  """Runs as many processes at a time as a run has hosts, each for its rows of the same batches."""
  for hosts in (1, 4):
    command = [sys.executable, '-m', 'benchmarks.data', f'--workdir={folder}', '--threads=1']
    command += [f'--windows={FLAGS.windows}', f'--images={FLAGS.images}']
    processes = [
      subprocess.Popen([*command, f'--host={host}/{hosts}'], cwd=ROOT, stdout=subprocess.PIPE)
      for host in range(hosts)
    ]
    lines = [process.communicate()[0].split() for process in processes]
    images, megabytes, seconds = zip(*(map(float, line) for line in lines))
    print(
      f'hosts, {hosts}: each shows {min(images):.0f} to {max(images):.0f} images, '
      f'reads {min(megabytes):.0f} to {max(megabytes):.0f} MB '
      f'in {min(seconds):.1f} to {max(seconds):.1f} CPU seconds',
      flush=True,
    )


def one_host(folder, host, hosts):
  """Prints images shown, megabytes read and CPU seconds over `--windows` windows."""
  rows = range(BATCH['batch_size'])[host::hosts]
  with open_pipeline(folder, 336, BATCH, 1, rows).batches() as batches:
    next(batches)
    read, busy, images = psutil.Process().io_counters().read_chars, time.process_time(), 0
    position = 0
    while position < FLAGS.windows * BATCH['window']:
      batch, position = next(batches)
      images += int((batch['visual_index'] >= 0).sum()) // VISUAL['224']
    read = psutil.Process().io_counters().read_chars - read
    print(images, read / 1e6, time.process_time() - busy)


def resident_mib():
  """The resident memory of this process in MiB."""
  return psutil.Process().memory_info().rss / 2**20


def report_memory(folder, threads):
  begin, samples = time.monotonic(), []
  with (
    open_pipeline(folder, 336, BATCH, threads).batches() as batches,
    Progress(total=int(60 * FLAGS.minutes), what='memory', unit='s') as bar,
  ):
    while (seconds := time.monotonic() - begin) < 60 * FLAGS.minutes:
      next(batches)
      while len(samples) <= seconds:  # One per second.
        samples.append(resident_mib())
        bar.update()
  medians = [statistics.median(part) for part in np.array_split(samples, 5)]
  shown = ', '.join(f'{median:.0f}' for median in medians)
  print(
    f'memory, {FLAGS.minutes:g} minutes: medians of the fifths {shown} MiB; from the second to the '
    f'last {medians[4] - medians[1]:+.0f} MiB, {medians[4] / medians[1] - 1:+.1%} (target flat); '
    f'largest {max(samples):.0f} MiB'
  )


def main():
  threads = FLAGS.threads or len(os.sched_getaffinity(0))
  with tempfile.TemporaryDirectory() as temporary:
    folder = pathlib.Path(FLAGS.workdir or temporary).absolute()
    if FLAGS.first_batch is not None:
      return first_batch(folder, FLAGS.first_batch, threads)
    if FLAGS.host is not None:
      return one_host(folder, *map(int, FLAGS.host.split('/')))
    folder.mkdir(parents=True, exist_ok=True)
    make_data(folder, FLAGS.images)
    report_order()
    report_packing()
    report_start(folder, threads)
    report_hosts(folder)
    report_speed(folder, threads)
    if FLAGS.minutes:
      report_memory(folder, threads)


if __name__ == '__main__':
  flags.DEFINE_integer('images', 256, 'JPEGs to generate.', lower_bound=1)
  flags.DEFINE_integer(
    'windows', 6, f'Windows of {BATCH["window"]} examples per speed measurement.', lower_bound=1
  )
  flags.DEFINE_integer(
    'rounds', 5, 'Rounds of speed measurements. Their median counts.', lower_bound=1
  )
  flags.DEFINE_integer('threads', None, 'Threads that read and decode. Default: one per core.')
  flags.DEFINE_float('minutes', 10.0, 'Minutes of the memory measurement. 0: none.', lower_bound=0)
  flags.DEFINE_string('workdir', None, 'Folder of the data. Default: a temporary one.')
  flags.DEFINE_integer(
    'first_batch',
    None,
    'Internal: print the seconds to the first batch from this position.',
  )
  flags.DEFINE_string('host', None, 'Internal: measure as host NUMBER/HOSTS.')
  cli.run(main)
