"""Where records come from: one file per dataset family, found by name in `SOURCES`."""

from sphinx_jax.core.tables import Table
from sphinx_jax.data.record import Source

SOURCES = Table(
  'source',
  {
    'miniworld': 'sphinx_jax.data.sources.miniworld:open_source',
    'jsonl': 'sphinx_jax.data.sources.jsonl:open_source',
  },
)


def open_source(entry, data_dir) -> Source:
  """Opens the source that a mixture entry names.

  entry: mapping or ConfigDict with `source` and that source's own arguments, data_dir: folder of the built datasets.
  Raises SphinxError if the source is unknown or cannot be opened.
  """
  return SOURCES[entry['source']](entry, data_dir)
