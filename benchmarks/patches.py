"""Times the image encoder of Idefics2 on images of several sizes: `python -m benchmarks.patches`.

Ways to lay out the images of a batch:

    canvas   each image alone on the largest canvas
    batch    each image alone on the smallest canvas that holds all of the batch
    grouped  images that fit the same smallest canvas are encoded together, one program for each
    length   images of about as many patches are encoded together, one program for each length
    packed   patches of several images one after another in rows of a fixed length, with segments

The first table counts what the full-size encoder computes (SigLIP SO400M, 980 pixels): patches, of
which some are padding, FLOP, and bytes of the largest attention matrix in float32. The second
table times a smaller encoder on images of half the size: a quarter of the width and of the patches,
so that attention has the same share of the FLOP. It is CPU time. All ways run in turns, and ratios
are medians over the rounds. What the ways compute is compared first.
"""

import argparse
import os
import statistics
import time

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax
import jax.numpy as jnp
import numpy as np

from sphinx_jax.data import slots
from sphinx_jax.models import families, idefics2
from sphinx_jax.planning import flops

# Width and height of images -> their share: photos, small squares, screenshots and pages.
SIZES = {
  (640, 480): 0.45,
  (480, 640): 0.15,
  (336, 336): 0.15,
  (1920, 1080): 0.1,
  (2480, 3508): 0.15,
}
ROW = 39 * 128  # Patches of a packed row: a little more than a full canvas has.
SLOTS = 6  # Images of a packed row, at most.


def full_size() -> dict:
  config = idefics2.full_size(dtype='float32')
  config.llm.layers = 1
  return config


def reduced():
  """A quarter of the width, half of each side, 2 of 27 layers, and the rest in proportion."""
  config = idefics2.full_size(vocab=8, dtype='float32')
  config.image_size = 490
  config.slots.update(shortest=189, longest=490)
  config.vision.update(width=288, layers=2, heads=4, hidden=1076, pos_grid=35)
  config.perceiver.update(queries=16, layers=1, heads=4, kv_heads=1)
  config.llm.update(width=512, layers=1, heads=4, kv_heads=1, multiple_of=768, ffn_multiplier=0.5)
  return config


def draw(count: int, config, seed: int) -> list[tuple[int, int]]:
  """Rows and columns of random images after resizing, whose size follows that of the canvas."""
  chosen = np.random.default_rng(seed).choice(len(SIZES), count, p=list(SIZES.values()))
  rule, scale = slots.Fit(**config.slots), config.image_size / 980
  edges = [[round(scale * edge) for edge in size] for size in SIZES]
  return [rule.sizes(*edges[i])[0][::-1] for i in chosen]


def lay_out(way: str, config, sizes: list[tuple[int, int]]) -> list[tuple]:
  """The calls of one way: (images of each row, canvas, patches of a row) each."""
  side, patch = config.image_size, config.vision.patch
  scale = side**2 / 980**2
  canvases = [patch * -(-side * fifths // (5 * patch)) for fifths in (2, 3, 4, 5)]
  counts = [(height // patch) * (width // patch) for height, width in sizes]
  fit = lambda n: next(edge for edge in canvases if edge >= n)
  alone = [[i] for i in range(len(sizes))]
  if way == 'canvas':
    return [(alone, (side, side), 0)]
  if way == 'batch':
    return [(alone, tuple(fit(max(edges)) for edges in zip(*sizes)), 0)]
  groups = {}
  if way == 'grouped':
    for i, size in enumerate(sizes):
      groups.setdefault(tuple(map(fit, size)), []).append([i])
    return [(rows, canvas, 0) for canvas, rows in groups.items()]
  if way == 'length':
    for i, size in enumerate(sizes):
      groups.setdefault(idefics2.Idefics2.encoded_length(config, *size), []).append([i])
    return [(rows, (side, side), length) for length, rows in groups.items()]
  row, rows, free = int(ROW * scale), [], []
  for i in sorted(range(len(sizes)), key=lambda i: -counts[i]):  # Best of the rows with room.
    room = [(free[r], r) for r in range(len(rows)) if free[r] >= counts[i] and len(rows[r]) < SLOTS]
    if not room:
      rows.append([]), free.append(row)
      room = [(row, len(rows) - 1)]
    _, r = min(room)
    rows[r].append(i)
    free[r] -= counts[i]
  return [(rows, (side, side), row)]


def call(config, sizes, images, rows, canvas, length):
  """(module, images uint8[B,N,Y,X,3], sizes int32[B,N,2]) of one call."""
  config = config.copy_and_resolve_references()
  config.vision.patches_per_row = length or 0
  most = max(map(len, rows))
  shape = (len(rows), most)
  pixels, image_size = np.zeros((*shape, *canvas, 3), np.uint8), np.zeros((*shape, 2), np.int32)
  for b, row in enumerate(rows):
    for n, i in enumerate(row):
      image_size[b, n] = sizes[i]
      if images is not None:
        slots.place(images[i], pixels[b, n], image_size[b, n])
  return families.build(config), pixels, image_size


def analytic(way: str, sizes: list[tuple[int, int]]) -> str:
  config = full_size()
  real = sum((height // 14) * (width // 14) for height, width in sizes)
  params = families.abstract_params(config)
  computed, total, largest = 0, 0, 0
  calls = lay_out(way, config, sizes)
  for rows, canvas, length in calls:
    module, pixels, image_size = call(config, sizes, None, rows, canvas, length)
    traced = jax.jit(
      lambda params, *x, module=module: module.apply({'params': params}, *x, method='encode')
    ).trace(params, jax.ShapeDtypeStruct(pixels.shape, jnp.uint8), image_size)
    total += sum(flops.count(traced).parts.values())
    length = length or (canvas[0] // 14) * (canvas[1] // 14)
    computed += len(rows) * length
    largest = max(largest, 4 * config.vision.heads * length**2)
  return (
    f'{way:10}{len(calls):9}{computed:10,}{1 - real / computed:9.0%}{total / 1e12:10.1f}'
    f'{largest / 2**30:10.2f}'
  )


def make(way, config, params, sizes, images, backward):
  """A function that encodes all images and returns visual tokens, or gradients, of every call."""
  calls = []
  for rows, canvas, length in lay_out(way, config, sizes):
    module, pixels, image_size = call(config, sizes, images, rows, canvas, length)

    def encode(params, pixels, image_size, module=module, rows=rows):
      visual = module.apply({'params': params}, pixels, image_size, method='encode')
      visual = visual.reshape(*pixels.shape[:2], -1, visual.shape[-1])
      at = [(b, n) for b, row in enumerate(rows) for n in range(len(row))]
      return visual[tuple(np.array(at).T)]

    if backward:
      encode = jax.grad(lambda *x, encode=encode: jnp.square(encode(*x)).sum())
    order = [i for row in rows for i in row]
    calls.append((jax.jit(encode), jnp.asarray(pixels), jnp.asarray(image_size), order))

  def run():
    return jax.block_until_ready([(f(params, *x), order) for f, *x, order in calls])

  return run


def compare(ways: list, backward: bool) -> float:
  """Largest difference to the first way over the largest value."""

  def joined(outputs):
    if backward:
      return jax.tree.map(lambda *x: sum(x), *(out for out, _ in outputs))
    order = np.argsort([i for _, order in outputs for i in order])
    return np.concatenate([out for out, _ in outputs])[order]

  first, *others = [joined(run()) for run in ways]
  differences = jax.tree.map(
    lambda a, *b: max(float(np.abs(a - c).max()) for c in b) / max(float(np.abs(a).max()), 1e-3),
    first,
    *others,
  )
  return max(jax.tree.leaves(differences))


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--images', type=int, default=8, help='images of a batch (%(default)s)')
  parser.add_argument('--rounds', type=int, default=5, help='timed rounds (%(default)s)')
  parser.add_argument('--seed', type=int, default=0, help='seed of the sizes (%(default)s)')
  options = parser.parse_args()
  ways = ('canvas', 'batch', 'grouped', 'length', 'packed')
  config = full_size()
  sizes = draw(options.images, config, options.seed)
  print(f'{"full size":10}{"programs":>9}{"patches":>10}{"padding":>9}{"TFLOP":>10}{"GiB":>10}')
  for way in ways:
    print(analytic(way, sizes))
  config = reduced()
  sizes = draw(options.images, config, options.seed)
  rng = np.random.default_rng(0)
  images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
  params = families.init(config, jax.random.key(0))
  for backward in (False, True):
    runs = [make(way, config, params, sizes, images, backward) for way in ways]
    difference = compare(runs, backward)
    seconds = []
    for _ in range(options.rounds):
      seconds.append([])
      for run in runs:
        began = time.process_time()
        run()
        seconds[-1].append(time.process_time() - began)
    print(
      f'\n{"and backward" if backward else "forward":14}{"seconds":>9}{"times faster":>14}'
      f'   of single rounds (largest difference {difference:.1e})'
    )
    for i, way in enumerate(ways):
      ratios = [round[0] / round[i] for round in seconds]
      print(
        f'{way:14}{statistics.median(r[i] for r in seconds):9.2f}'
        f'{statistics.median(ratios):14.2f}   {min(ratios):.2f} to {max(ratios):.2f}'
      )
  print(f'\n{options.images} images; load average {os.getloadavg()[0]:.1f}')


if __name__ == '__main__':
  main()
