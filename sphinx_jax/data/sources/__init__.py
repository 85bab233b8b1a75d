"""Where records come from: one file per dataset family, found by name in `FAMILIES`, and sources of another kind in `SOURCES`."""

from sphinx_jax.core import errors
from sphinx_jax.core.tables import Table
from sphinx_jax.data.record import Source
from sphinx_jax.data.sources import base

# What reads official files (see base.py); each docstring shows the tree it expects.
FAMILIES = Table(
  'dataset',
  {
    'coco': 'sphinx_jax.data.sources.coco:Coco',
    'lvis': 'sphinx_jax.data.sources.lvis:Lvis',
    'doclaynet': 'sphinx_jax.data.sources.doclaynet:DocLayNet',
    'refcoco': 'sphinx_jax.data.sources.refcoco:RefCoco',
    'refcoco+': 'sphinx_jax.data.sources.refcoco:RefCocoPlus',
    'refcocog': 'sphinx_jax.data.sources.refcoco:RefCocoG',
    'visual_genome': 'sphinx_jax.data.sources.visual_genome:VisualGenome',
    'flickr30k_entities': 'sphinx_jax.data.sources.flickr30k_entities:Flickr30kEntities',
    'vqav2': 'sphinx_jax.data.sources.vqav2:Vqav2',
    'okvqa': 'sphinx_jax.data.sources.vqav2:OkVqa',
    'aokvqa': 'sphinx_jax.data.sources.aokvqa:AOkVqa',
    'gqa': 'sphinx_jax.data.sources.gqa:Gqa',
    'ocrvqa': 'sphinx_jax.data.sources.ocrvqa:OcrVqa',
    'textvqa': 'sphinx_jax.data.sources.textvqa:TextVqa',
    'textcaps': 'sphinx_jax.data.sources.textvqa:TextCaps',
    'vizwiz': 'sphinx_jax.data.sources.vizwiz:VizWiz',
    'scienceqa': 'sphinx_jax.data.sources.scienceqa:ScienceQa',
    'docvqa': 'sphinx_jax.data.sources.docvqa:DocVqa',
    'chartqa': 'sphinx_jax.data.sources.chartqa:ChartQa',
    'ai2d': 'sphinx_jax.data.sources.ai2d:Ai2d',
    'iconqa': 'sphinx_jax.data.sources.iconqa:IconQa',
    'vsr': 'sphinx_jax.data.sources.vsr:Vsr',
    'llava': 'sphinx_jax.data.sources.dialogs:Llava',
    'sharegpt': 'sphinx_jax.data.sources.dialogs:ShareGpt',
    'laion': 'sphinx_jax.data.sources.laion:Laion',
    'laion_parquet': 'sphinx_jax.data.sources.laion:LaionParquet',
    'refinedweb': 'sphinx_jax.data.sources.text:RefinedWeb',
    'plain_text': 'sphinx_jax.data.sources.text:PlainText',
    'built': 'sphinx_jax.data.sources.built:Built',
  },
)

SOURCES = Table(
  'source',
  {
    'miniworld': 'sphinx_jax.data.sources.miniworld:open_source',
    'jsonl': 'sphinx_jax.data.sources.jsonl:open_source',
    'data_config': 'sphinx_jax.data.sources.data_config:open_source',
  },
)


def open_source(entry, data_dir) -> Source:
  """Opens the source that a mixture entry names.

  entry: mapping or ConfigDict with `source` and that source's own arguments, data_dir: folder of the datasets.
  Raises SphinxError if the source is unknown or cannot be opened.
  """
  name = entry['source']
  if name in FAMILIES:
    return base.open_records(FAMILIES[name], entry, data_dir)
  if name not in SOURCES:
    raise errors.unknown('source', name, [*SOURCES, *FAMILIES])
  return SOURCES[name](entry, data_dir)
