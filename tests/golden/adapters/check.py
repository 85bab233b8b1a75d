"""Compares our logits with those of PEFT itself, both ways: see README.md beside this file.

python -m tests.golden.adapters.check
"""

import pathlib
import tempfile

import jax
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from transformers import Idefics2ForConditionalGeneration

import sphinx_jax
from sphinx_jax import convert
from sphinx_jax.checkpoint import adapter_runs, bundle, store, stream
from sphinx_jax.core import trees
from sphinx_jax.data import images as images_lib
from sphinx_jax.models import adapters, families
from sphinx_jax.training import layout
from tests.models import idefics2_golden as golden

MODEL = golden.FOLDER / 'model'
CASE = 'one_image'
# Name -> rsLoRA, ranks by pattern, layers with an adapter, parameters that are trained in full.
OURS = {
  'lora': (False, (), 'llm/layers/.*', ()),
  'rslora, ranks': (True, (('.*/w[12]', 2),), '(llm|perceiver|vision/trunk)/layers/.*', ()),
  'whole modules': (
    False,
    (),
    'llm/layers/attention/.*',
    ('llm/embed', 'llm/layers/ffn_norm/scale'),
  ),
}
THEIRS = {
  'dora': dict(use_dora=True, target_modules=r'.*(text|vision)_model.*(q_proj|fc1|down_proj)'),
  'rslora, patterns': dict(
    use_rslora=True,
    target_modules=r'.*(text|vision)_model.*(q_proj|v_proj)',
    rank_pattern={r'layers\.0\.self_attn\.q_proj': 2},
    alpha_pattern={'v_proj': 3},
  ),
  'bias': dict(bias='all', fan_in_fan_out=True, target_modules=r'.*vision_model.*(k_proj|fc2)'),
  'modules_to_save': dict(
    target_modules=r'.*text_model.*o_proj', modules_to_save=['lm_head', 'modality_projection']
  ),
}


def base_of_peft() -> Idefics2ForConditionalGeneration:
  return Idefics2ForConditionalGeneration.from_pretrained(
    MODEL, dtype=torch.float32, attn_implementation='eager'
  )


def logits_of_peft(model: torch.nn.Module) -> np.ndarray:
  arrays = golden.recorded(CASE)
  names = ('input_ids', 'attention_mask', 'pixel_values', 'pixel_attention_mask')
  inputs = {name: torch.tensor(arrays[name]) for name in names}
  inputs['pixel_attention_mask'] = inputs['pixel_attention_mask'].bool()
  with torch.no_grad():
    logits = model.eval()(**inputs).logits.numpy()
  return golden.unpadded(logits, arrays)[0]


def logits_of_ours(*given: pathlib.Path, **options: pathlib.Path) -> np.ndarray:
  model = sphinx_jax.load(*given, **options)
  image = np.asarray(images_lib.to_rgb(Image.open(golden.FOLDER / 'images' / 'wide3to1.png')))
  ids = model.encode(golden.FACTS['prompts_of_cases'][CASE][0], [image])
  return golden.text_positions(model.logits(np.array([ids]), [[image]]), golden.recorded(CASE))[0]


def write_run(folder: pathlib.Path, base: pathlib.Path, case: str) -> None:
  """Writes a run with adapters as if it was trained."""
  rslora, patterns, target, whole = OURS[case]
  carried, stored, rng = bundle.load_bundle(base), stream.read(base), np.random.default_rng(0)
  axes = families.logical_axes(carried.config.model)
  ranks = adapters.ranks(adapters.matrices(axes), target, 4, patterns)
  shapes, _ = adapters.extend(families.abstract_params(carried.config.model), axes, ranks)
  scales = {layer: layout.scale(6.0, rank, rslora) for layer, rank in ranks.items()}
  leaves = {
    path: rng.normal(0, 0.2, leaf.shape).astype(np.float32) if path.endswith(adapters.B) else leaf
    for path, leaf in adapters.fresh(shapes, scales, jax.random.key(0)).items()
  }
  for path in whole:
    value = stored[path].read(())
    leaves[path] = (value + rng.normal(0, 0.1, value.shape)).astype(np.float32)
  with carried.config.unlocked():
    carried.config.lora = dict(rank=4, alpha=6.0, target=target, ranks=patterns, rslora=rslora)
    carried.config.lora.dropout = 0.0
  with store.Store(folder) as saver:
    saver.save(1, trees.unflatten(leaves), None, {**carried.to_meta(), **adapter_runs.base(base)})


def write_peft(folder: pathlib.Path, case: str) -> np.ndarray:
  """Writes an adapter of PEFT as if it was trained, and returns the logits with it."""
  torch.manual_seed(0)
  config = LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **THEIRS[case])
  model = get_peft_model(base_of_peft(), config)
  with torch.no_grad():
    for name, value in model.named_parameters():
      if value.requires_grad:
        value += (0.3 * value if 'magnitude' in name else 0.05) * torch.randn_like(value)
  model.save_pretrained(folder)
  return logits_of_peft(model)


def report(name: str, theirs: np.ndarray, ours: np.ndarray) -> None:
  most = np.abs(theirs).max()
  print(
    f'{name}: differs by {np.abs(theirs - ours).max():.2g}, logits up to {most:.2g}', flush=True
  )


def main() -> None:
  root = pathlib.Path(tempfile.mkdtemp())
  base = root / 'base'
  convert.import_checkpoint(convert.open_sources([str(MODEL)]), str(base))
  report('no adapter', logits_of_peft(base_of_peft()), logits_of_ours(base))
  for case in OURS:
    run, written = root / case, root / f'{case}, written'
    write_run(run, base, case)
    convert.export_adapter(str(run), str(written))
    theirs = logits_of_peft(PeftModel.from_pretrained(base_of_peft(), written))
    report(f'ours, {case}', theirs, logits_of_ours(run))
  for case in THEIRS:
    theirs = write_peft(root / case, case)
    report(f'theirs, {case}, on a checkpoint', theirs, logits_of_ours(base, adapter=root / case))
    report(f'theirs, {case}, on the folder', theirs, logits_of_ours(MODEL, adapter=root / case))


if __name__ == '__main__':
  main()
