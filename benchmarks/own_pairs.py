"""Pairs for DPO from a model's own captions: the truest of some samples, and the least true.

    python -m benchmarks.own_pairs --checkpoint=workdir/mini/stage2 --output=workdir/pairs
    python -m sphinx_jax.train --config=mini_dpo:workdir/mini,workdir/pairs/pairs.jsonl \\
        --workdir=workdir/mini_dpo

Scenes of miniworld's training split are captioned several times with a temperature. What a caption
names is compared with what the scene has. A scene whose samples have equally many wrong objects
gives no pair. benchmarks/hallucination.py measures models before and after.
"""

import io
import json
import pathlib
from collections.abc import Sequence

from absl import flags
from PIL import Image

from benchmarks import hallucination
from sphinx_jax.core import cli
from sphinx_jax.generate import load
from sphinx_jax.tasks import caption

FLAGS = flags.FLAGS


def pair(samples: Sequence[str], there: set[str]) -> tuple[str, str] | None:
  """Returns (chosen, rejected) of the captions of a scene, or None if no one is truer.

  Args:
    samples: captions.
    there: what the scene has, as `caption.things` names it.
  """

  def faults(text: str) -> tuple[int, int]:
    named = caption.things(text)
    return len(named - there), -len(named & there)

  chosen, rejected = min(samples, key=faults), max(samples, key=faults)
  return (chosen, rejected) if faults(rejected)[0] > faults(chosen)[0] else None


def main() -> None:
  """Writes pairs.jsonl and the images of its scenes."""
  output = pathlib.Path(FLAGS.output)
  output.mkdir(parents=True, exist_ok=True)
  scenes = hallucination.read_scenes(FLAGS.data_dir, FLAGS.scenes, 'train')
  prompt = caption.INSTRUCTIONS[0]
  sampled = load.load_model(FLAGS.checkpoint).answers(
    [[(prompt, None)]] * (len(scenes) * FLAGS.samples),
    [pixels for pixels, _ in scenes for _ in range(FLAGS.samples)],
    max_new_tokens=hallucination.LONGEST_CAPTION,
    temperature=FLAGS.temperature,
    seed=FLAGS.seed,
  )
  lines = []
  for number, (pixels, there) in enumerate(scenes):
    found = pair(sampled[number * FLAGS.samples :][: FLAGS.samples], there)
    if found is None:
      continue
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'PNG')
    (output / f'{number}.png').write_bytes(file.getvalue())
    chosen, rejected = found
    lines.append(dict(prompt=prompt, chosen=chosen, rejected=rejected, images=[f'{number}.png']))
  text = ''.join(f'{json.dumps(line)}\n' for line in lines)
  (output / 'pairs.jsonl').write_text(text)
  print(f'{len(lines)} pairs of {len(scenes)} scenes: {output / "pairs.jsonl"}')


if __name__ == '__main__':
  cli.define_path('checkpoint', None, 'Model that captions.', required=True)
  cli.define_path('output', None, 'Folder for pairs.jsonl and its images.', required=True)
  cli.define_path('data_dir', 'workdir/mini/data', 'Directory of the data of the mini recipe.')
  flags.DEFINE_integer('scenes', 800, 'Most scenes.', lower_bound=1)
  flags.DEFINE_integer('samples', 6, 'Captions of a scene.', lower_bound=2)
  flags.DEFINE_float('temperature', 1.0, 'Of the samples.', lower_bound=1e-3)
  cli.define_seed('Random seed of the samples.')
  cli.run(main)
