"""Checkpoints as a run leaves them that added tokens and trained all weights."""

import dataclasses

from sphinx_jax.checkpoint import bundle, grown, stream
from sphinx_jax.data import added_tokens


def write(source, folder, tokens):
  """Writes the checkpoint of another one with further tokens; returns the folder."""
  carried = bundle.load_bundle(source)
  tokenizer = added_tokens.add(carried.open_tokenizer(), tokens)
  config = carried.config.copy_and_resolve_references()
  with config.unlocked():
    config.init_from, config.model.llm.vocab = str(source), tokenizer.vocab_size
  arrays = grown.begin(stream.read(source), tokenizer.vocab_size, len(tokens), separate=False)
  meta = dataclasses.replace(
    carried, config=config, tokenizer=tokenizer.model_bytes, added_tokens=tokenizer.added
  ).to_meta()
  writer = stream.Writer(folder, {'params': arrays}, meta)
  for path, array in arrays.items():
    writer.write('params', path, array.read(()))
  writer.finish()
  return folder
