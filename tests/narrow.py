"""Shipped configs at a width that a laptop trains in seconds; all other settings stay."""

from ml_collections import ConfigDict

from tests.models import idefics2_golden

MODEL = {
  'image_size': 16,
  'grid': 1,
  'dtype': 'float32',
  'encoders': {'clip': dict(view=16, patch=8, width=8, layers=1, heads=2)},
  'llm': dict(
    name='llama', vocab=512, width=16, layers=2, heads=4, kv_heads=4, multiple_of=8, max_length=512
  ),
}


def narrow_model(config: ConfigDict, vocab: int = 512) -> None:
  """Replaces the model of an unlocked config of one training run."""
  del config.model.encoders, config.model.llm
  config.model.update(MODEL)
  config.model.llm.vocab = vocab


def narrow_run(config: ConfigDict) -> ConfigDict:
  """Returns a pod run with a small model and batch, and few updates."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    if config.model.get('name') == 'idefics2':
      config.model = idefics2_golden.config()
    else:
      narrow_model(config)
    config.update(steps=2, log_every=1, eval_every=2, eval_batches=1, loss_chunk=32)
    config.batch.update(size=8, seq_len=512, images=4, window=64)
    config.optimizer.update(warmup=1, lr=1e-2, accumulate=1)
  return config


def narrow_recipe(config: ConfigDict) -> ConfigDict:
  """Returns the laptop recipe with a small model, little data and few updates."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for name in ('real', 'synthetic', 'stage2'):
      stage = config[name]
      narrow_model(stage, config.data.vocab)
      stage.update(steps=4, log_every=1, eval_every=4, eval_batches=2)
      stage.optimizer.warmup = 1
      stage.batch.update(size=8, seq_len=512, images=16, window=256)
      stage.checkpoint.every = 4
    narrow_model(config.encoders, config.data.vocab)
    objectives = config.encoders.objectives
    del objectives.distill, objectives.captions  # Of encoders that the narrow model has not.
    objectives.contrast.trains = ('clip',)
    config.data.train = dict(objects=24, words=12, page=12, figure=12)
    config.data.heldout = 6
    config.evaluate.examples = 3
    config.mix.coefficients = (0.0, 0.5, 1.0)
  return config.lock()
