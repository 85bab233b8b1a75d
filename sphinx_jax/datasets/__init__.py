"""Where records come from: the dataset families, one file each, and the other sources."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sphinx_jax.core import errors, renames
from sphinx_jax.core.tables import Table
from sphinx_jax.data.record import Source
from sphinx_jax.datasets import family as family_lib
from sphinx_jax.datasets.files import changed_files as changed_files, opened_files

# Readers of published dataset files (family.py). Each docstring shows the expected tree.
FAMILIES = Table(
  'dataset',
  {
    'coco': 'sphinx_jax.datasets.coco:Coco',
    'lvis': 'sphinx_jax.datasets.lvis:Lvis',
    'doclaynet': 'sphinx_jax.datasets.doclaynet:DocLayNet',
    'refcoco': 'sphinx_jax.datasets.refcoco:RefCoco',
    'refcoco+': 'sphinx_jax.datasets.refcoco:RefCocoPlus',
    'refcocog': 'sphinx_jax.datasets.refcoco:RefCocoG',
    'visual_genome': 'sphinx_jax.datasets.visual_genome:VisualGenome',
    'flickr30k_entities': 'sphinx_jax.datasets.flickr30k_entities:Flickr30kEntities',
    'vqav2': 'sphinx_jax.datasets.vqav2:Vqav2',
    'okvqa': 'sphinx_jax.datasets.vqav2:OkVqa',
    'aokvqa': 'sphinx_jax.datasets.aokvqa:AOkVqa',
    'gqa': 'sphinx_jax.datasets.gqa:Gqa',
    'ocrvqa': 'sphinx_jax.datasets.ocrvqa:OcrVqa',
    'textvqa': 'sphinx_jax.datasets.textvqa:TextVqa',
    'textcaps': 'sphinx_jax.datasets.textvqa:TextCaps',
    'vizwiz': 'sphinx_jax.datasets.vizwiz:VizWiz',
    'scienceqa': 'sphinx_jax.datasets.scienceqa:ScienceQa',
    'docvqa': 'sphinx_jax.datasets.docvqa:DocVqa',
    'chartqa': 'sphinx_jax.datasets.chartqa:ChartQa',
    'ai2d': 'sphinx_jax.datasets.ai2d:Ai2d',
    'iconqa': 'sphinx_jax.datasets.iconqa:IconQa',
    'vsr': 'sphinx_jax.datasets.vsr:Vsr',
    'llava': 'sphinx_jax.datasets.dialogs:Llava',
    'sharegpt': 'sphinx_jax.datasets.dialogs:ShareGpt',
    'laion': 'sphinx_jax.datasets.laion:Laion',
    'laion_parquet': 'sphinx_jax.datasets.laion:LaionParquet',
    'refinedweb': 'sphinx_jax.datasets.text:RefinedWeb',
    'plain_text': 'sphinx_jax.datasets.text:PlainText',
    'array_record': 'sphinx_jax.datasets.array_record:ArrayRecord',
  },
)

SOURCES = Table(
  'source',
  {
    'miniworld': 'sphinx_jax.datasets.miniworld:open_source',
    'miniworld_pairs': 'sphinx_jax.datasets.miniworld_pairs:open_source',
    'jsonl': 'sphinx_jax.datasets.jsonl:open_source',
    'pairs': 'sphinx_jax.datasets.pairs:open_source',
    'data_config': 'sphinx_jax.datasets.data_config:open_source',
  },
)


def open_source(entry: Mapping[str, Any], data_dir: str | Path | None) -> Source:
  """Opens the source that a mixture entry names.

  Args:
    entry: mapping or ConfigDict with `source` and that source's own arguments.
    data_dir: root of all datasets of the run.

  Raises:
    SphinxError: the source is unknown or cannot be opened.
  """
  if not isinstance(entry.get('source'), str):
    raise errors.make(
      'entry', f'source {entry.get("source")!r}', 'the name of a source', "add 'source'"
    )
  name = renames.source(entry['source'])
  if name not in SOURCES and name not in FAMILIES:
    raise errors.unknown('source', name, [*SOURCES, *FAMILIES])
  with opened_files() as files:
    if name in FAMILIES:
      source = family_lib.open_records(FAMILIES[name], entry, data_dir)
    else:
      source = SOURCES[name](entry, data_dir)
  source.files = files
  return source
