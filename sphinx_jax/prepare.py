"""Writes a dataset as sharded array_record: `python -m sphinx_jax.prepare --source=refcoco --split=train --task=rec
--root=/data/refcoco --output=/data/built/refcoco [--set=key=value] [--processes=2] [--shard=2000]`.

It reads the official files of any dataset family, decodes every picture once, keeps its bytes as they are, and counts what
is left out by reason. Interrupted, the same command goes on; finished, it is recognised. Further splits go into the same
folder. A mixture reads it as {source: 'array_record', root: '/data/built/refcoco', split: 'train', task: 'rec'}.

With --beam the same shards are written by an Apache Beam pipeline: here with the direct runner, elsewhere by
--beam_runner=DataflowRunner --beam_option=project=x --beam_option=temp_location=gs://...; LAION's tars are a shard each.
"""

import json

from absl import flags

from sphinx_jax.core import cli, errors
from sphinx_jax.preparation import (
  folder as built_folder,
  runners as build_runners,
  write as building,
)

FLAGS = flags.FLAGS


def main() -> None:
  build = building.make(
    FLAGS.source,
    FLAGS.root,
    FLAGS.output,
    FLAGS.split,
    FLAGS.task,
    FLAGS.max_turns,
    dict(map(_setting, FLAGS['set'].value)),
    FLAGS.name,
    FLAGS.shard,
  )
  shards = building.plan(build)
  split = built_folder.claim(build, shards)
  if split is None:
    if FLAGS.beam:
      build_runners.beam(build, shards, FLAGS.beam_runner, FLAGS.beam_option)
    else:
      build_runners.local(build, shards, FLAGS.processes)
    split = built_folder.finish(build, shards)
    words = (
      'written and verified: every item is a record or counted, every shard holds what TFDS says'
    )
  else:
    words = 'found there, finished'
  print(f'{build.source} {build.split} in {build.output}: {words}\n{built_folder.table(split)}')


def _setting(text: str) -> tuple[str, object]:
  """'key=value' -> (key, value), the value as JSON where it is that, else as text."""
  key, equals, value = text.partition('=')
  if not equals:
    raise errors.make('--set', repr(text), 'key=value', 'see the docstring of the source')
  try:
    return key, json.loads(value)
  except ValueError:
    return key, value


if __name__ == '__main__':
  flags.DEFINE_string('source', None, 'Dataset family, as in datasets/__init__.py.', required=True)
  flags.DEFINE_string('root', None, 'Folder of its official files.', required=True)
  flags.DEFINE_string(
    'output', None, 'Folder to write; with --beam it may be a bucket (gs://...).', required=True
  )
  flags.DEFINE_string('split', '', "The dataset's own split; left out: its usual one.")
  flags.DEFINE_string('task', '', 'What the records are for; left out: what the dataset is for.')
  flags.DEFINE_integer(
    'max_turns', 1, 'Most questions about one picture in one record.', lower_bound=1
  )
  flags.DEFINE_multi_string('set', [], "A setting of the source's own, key=value; may be repeated.")
  flags.DEFINE_string('name', '', 'Of the TFDS dataset; left out: the source.')
  flags.DEFINE_integer(
    'shard',
    2000,
    'Items in a shard; a dataset of many tars or parquet files has one shard for each.',
    lower_bound=1,
  )
  flags.DEFINE_integer('processes', 2, 'That write shards on this machine.', lower_bound=1)
  flags.DEFINE_bool('beam', False, 'Write the shards with Apache Beam.')
  flags.DEFINE_string('beam_runner', 'DirectRunner', "Beam's runner.")
  flags.DEFINE_multi_string(
    'beam_option', [], "An option of Beam's, such as project=x; may be repeated."
  )
  cli.run(main)
