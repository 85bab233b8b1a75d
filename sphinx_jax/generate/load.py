"""A generator from a checkpoint alone: config, tokenizer and dialog travel inside it."""

import base64

from sphinx_jax.checkpoint import store
from sphinx_jax.core import config as config_lib
from sphinx_jax.data import dialog, tokenizer
from sphinx_jax.generate.decode import Generator


def load(directory, **options):
  """Reads a checkpoint.

  Args:
    directory: a run's directory or one step's.
    options: `rows` and `bucket` of the Generator.

  Returns:
    (Generator, the checkpoint's meta, its config as a ConfigDict).

  Raises:
    SphinxError: not a checkpoint.
  """
  meta = store.load_meta(directory)
  config = config_lib.from_json(meta['config'])
  text = tokenizer.Tokenizer(base64.b64decode(meta['tokenizer']))
  generator = Generator(config.model, store.load_params(directory), text, dialog.Template(**meta['dialog']), **options)
  return generator, meta, config
