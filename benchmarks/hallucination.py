"""How many objects models name or confirm that are not in the image, before and after DPO.

    python -m benchmarks.hallucination --checkpoints=workdir/mini/stage2,workdir/mini_dpo

Held-out scenes of miniworld are captioned, and asked about an object that they have and one that
they do not have. Printed are, of the captions, the share of named objects that are not in the scene
and the share of captions with one (CHAIR, arXiv 1809.02156), and the share of the scene's objects
that are named; of the questions, the scores of POPE.
"""

import io
import itertools
from collections.abc import Sequence

import numpy as np
from absl import flags
from PIL import Image

from sphinx_jax.core import cli
from sphinx_jax.core.text import table
from sphinx_jax.datasets import miniworld
from sphinx_jax.evaluation.protocols import pope
from sphinx_jax.generate import load
from sphinx_jax.generate.model import Model
from sphinx_jax.miniworld.draw import COLORS
from sphinx_jax.miniworld.objects import NAMES
from sphinx_jax.tasks import caption, task

FLAGS = flags.FLAGS
LONGEST_CAPTION = 120  # Tokens.

Scenes = Sequence[tuple[np.ndarray, set[str]]]  # (uint8[Y,X,3], what is there: {'red cup', ...})


def read_scenes(data_dir: str, count: int, split: str = 'test') -> Scenes:
  """The first scenes of objects of a split."""
  source = miniworld.Miniworld('caption', data_dir, split, kinds=('objects',))
  return [
    (
      np.asarray(Image.open(io.BytesIO(source[i].images[0])).convert('RGB')),
      {task.expression(thing) for thing in source.annotation(i)['objects']},
    )
    for i in range(min(count, len(source)))
  ]


def of_captions(model: Model, scenes: Scenes) -> dict[str, float]:
  """CHAIR of the captions of scenes, and how much of the scenes they name."""
  answers = model.answers(
    [[(caption.INSTRUCTIONS[0], None)]] * len(scenes),
    [pixels for pixels, _ in scenes],
    max_new_tokens=LONGEST_CAPTION,
  )
  named = [caption.things(answer) for answer in answers]
  wrong = [things - there for things, (_, there) in zip(named, scenes)]
  right = sum(len(things & there) for things, (_, there) in zip(named, scenes))
  return {
    'CHAIR_i': sum(map(len, wrong)) / max(sum(map(len, named)), 1),
    'CHAIR_s': sum(map(bool, wrong)) / len(scenes),
    'named': right / sum(len(there) for _, there in scenes),
  }


def of_questions(model: Model, scenes: Scenes) -> dict[str, float]:
  """POPE of two questions a scene: about an object that is there, and about one that is not."""
  entries, dialogs, images = [], [], []
  everything = [f'{color} {name}' for color, name in itertools.product(COLORS, NAMES)]
  for number, (pixels, there) in enumerate(scenes):
    rng = np.random.default_rng(number)
    absent = [name for name in everything if name not in there]
    for names, truth in ((sorted(there), 'yes'), (absent, 'no')):
      name = task.with_article(names[rng.integers(len(names))])
      dialogs.append([(task.SHORT_ANSWER.format(f'Is there {name}?'), None)])
      images.append(pixels)
      entries.append({'gt_answers': truth})
  answers = model.answers(dialogs, images, max_new_tokens=10)
  return pope.score([entry | {'answer': answer} for entry, answer in zip(entries, answers)])


def main() -> None:
  """Prints a row for every checkpoint."""
  scenes = read_scenes(FLAGS.data_dir, FLAGS.examples)
  rows = []
  for checkpoint in FLAGS.checkpoints:
    model = load.load_model(checkpoint)
    scores = of_captions(model, scenes) | of_questions(model, scenes)
    rows = rows or [('checkpoint', *scores)]
    rows.append((checkpoint, *(f'{score:.3f}' for score in scores.values())))
  print(table(rows, 'l' + 'r' * (len(rows[0]) - 1)))


if __name__ == '__main__':
  flags.DEFINE_list('checkpoints', None, 'Runs, with adapters or without.', required=True)
  flags.DEFINE_string('data_dir', 'workdir/mini/data', 'Directory of the data of the mini recipe.')
  flags.DEFINE_integer('examples', 300, 'Most scenes.', lower_bound=1)
  cli.run(main)
