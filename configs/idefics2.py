"""Stage 2 on a pod with Idefics2 in place of SPHINX: all tasks jointly, from idefics2-8b.

    python -m sphinx_jax.convert --source=idefics2-8b --output=workdir/idefics2-8b
    python -m sphinx_jax.train --config=idefics2:whole --workdir=workdir/idefics2

Argument: how an image is seen, and a mesh. 'whole' shows it at up to 980 pixels, as released. An
image has 64 tokens, so a row of 2048 positions holds the images of about eight examples. 'split'
shows the four quarters and the whole at up to 490 pixels each, with 320 tokens.

The data is that of configs/stage2.py. The vision tower is frozen, as in the notebook of the
authors for fine-tuning; the projection, the perceiver and Mistral are trained.

Hardware: 'whole' takes 38 GiB a device on v5p-16. At 40 % MFU a step takes 11 s and the run 4
days. docs/pods.md has other kinds of slices. On more than 32 devices, lower
--config.optimizer.accumulate, or raise --config.batch.size.
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import stage2
from sphinx_jax.core import errors
from sphinx_jax.models import idefics2
from sphinx_jax.parallel.mesh import PRESETS

# Edge of an image slot in pixels, slots of a row, whether an image is split into five of them, and
# the patches of a row's images together (0: every slot has those of its whole canvas). Eight photos
# of 640x480 have 12240 patches. Parts of split images fill most of their canvas.
IMAGES = {
  'whole': dict(edge=980, slots=8, split=False, patches=12288),
  'split': dict(edge=490, slots=20, split=True, patches=0),
}


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config of one run. The default of `arg` is 'whole'."""
  images, mesh = 'whole', 'fsdp'
  for part in filter(None, arg.split(',')):
    if part in IMAGES:
      images = part
    elif part in PRESETS:
      mesh = part
    else:
      raise errors.unknown('argument of config idefics2', part, [*IMAGES, *PRESETS])
  config = ConfigDict(stage2.get_config(f'7b,224,{mesh}').to_dict())
  config.name = f'idefics2_{images}'
  edge, slots, split, patches = IMAGES[images].values()
  config.model = idefics2.full_size(image_size=edge)
  config.model.slots.split = split
  config.model.vision.patches_per_row = patches
  config.model.remat = 'full'
  config.dialog = idefics2.Idefics2.dialog({'<end_of_utterance>'})
  config.batch.images = slots
  config.optimizer.accumulate = 4  # The patches of a quarter of the images are in memory at once.
  config.trainable = (('vision/.*', 'frozen'), ('.*', 'train'))
  config.init_from = 'workdir/idefics2-8b'
  return config.lock()
