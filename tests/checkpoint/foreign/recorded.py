"""Golden files and outputs of the libraries (tests/golden/foreign/make.py), opened once."""

import functools
import json
import pathlib
import shutil

import numpy as np

from sphinx_jax.checkpoint.foreign import assemble, sources

GOLDEN = pathlib.Path(__file__).parents[2] / 'golden' / 'foreign'
TOKENIZER = GOLDEN.parent / 'tokenizer.model'
OUTPUTS = np.load(GOLDEN / 'outputs.npz')
LLAMA, SHARDED, META = 'llama_hf', 'llama_hf_sharded', 'llama_meta'
# Encoders in mixed forms, as a user may have them.
FIRST = ('clip_hf', 'convnext_timm', 'dinov2_original.pth', 'blip2_hf')
SECOND = ('clip_open_clip.bin', 'convnext_open_clip.bin', 'dinov2_hf', 'blip2_hf')
OPENAI = ('clip_openai.pt', *SECOND[1:])


@functools.cache
def parts(*names: str) -> assemble.Assembly:
  return assemble.assemble([sources.open_source(GOLDEN / name) for name in names])


@functools.cache
def parameters(*names: str) -> dict[str, np.ndarray]:
  return {path: array.read(()) for path, array in assemble.arrays(parts(*names)).items()}


def edited(
  folder: pathlib.Path, name: str, remove: tuple[str, ...] = (), **changes
) -> pathlib.Path:
  """A copy with another config.json."""
  shutil.copytree(GOLDEN / name, folder)
  config = {
    key: value
    for key, value in json.loads((folder / 'config.json').read_text()).items()
    if key not in remove
  }
  (folder / 'config.json').write_text(json.dumps(config | changes))
  return folder
