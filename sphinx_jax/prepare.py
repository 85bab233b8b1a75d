"""Writes a dataset as sharded array_record files, which training reads in any order.

    python -m sphinx_jax.prepare --source=refcoco --split=train --task=rec --root=/data/refcoco \\
        --output=/data/prepared/refcoco [--set=key=value] [--processes=2] [--shard=2000]

It reads the published files of any dataset family, decodes every image once, stores its bytes
unchanged, and counts the skipped items by reason. After an interruption the same command resumes. A
finished build is recognized and left as it is. Further splits go into the same folder. A mixture
reads the result as {source: 'array_record', root: '/data/prepared/refcoco', split: 'train',
task: 'rec'}.

With --beam an Apache Beam pipeline writes the same shards. It runs on this machine, or elsewhere
with --beam_runner=DataflowRunner --beam_option=project=x --beam_option=temp_location=gs://... Each
tar file of LAION is one shard.
"""

import json
from typing import Any

from absl import flags

from sphinx_jax.core import cli, errors, files, paths
from sphinx_jax.datasets.files import opened_files
from sphinx_jax.preparation import plan, runners, verify

FLAGS = flags.FLAGS


def main() -> None:
  """Prepares the split that the command line names."""
  build = plan.make_build(
    source=FLAGS.source,
    root=FLAGS.root,
    output=FLAGS.output,
    split=FLAGS.split,
    task=FLAGS.task,
    max_turns=FLAGS.max_turns,
    settings=dict(_parse_setting(text) for text in FLAGS['set'].value),
    name=FLAGS.name,
    shard_size=FLAGS.shard,
  )
  with paths.locked(build.output, 'output'), files.writing(build.output, 'output'):
    status, split = _prepare(build)
  print(f'{build.source} {build.split} in {build.output}: {status}\n{verify.table(split)}')


def _prepare(build: plan.Build) -> tuple[str, dict[str, Any]]:
  """Writes what is missing of a split; returns what was done, and the result of `finish`."""
  with opened_files() as source_files:
    shards = plan.plan_shards(build)
  split = verify.claim(build, shards, source_files)
  if split is not None:
    return 'already finished', split
  if FLAGS.beam:
    runners.run_beam(build, shards, FLAGS.beam_runner, FLAGS.beam_option)
  else:
    runners.run_local(build, shards, FLAGS.processes)
  split = verify.finish(build, shards)
  return 'written and verified: every item is a record or counted, TFDS reads every shard', split


def _parse_setting(text: str) -> tuple[str, object]:
  """Parses 'key=value'. A value that is not JSON is text."""
  key, equals, value = text.partition('=')
  if not equals:
    raise errors.make(
      '--set', repr(text), 'key=value', "see the settings in the source's docstring"
    )
  try:
    return key, json.loads(value)
  except ValueError:
    return key, value


if __name__ == '__main__':
  flags.DEFINE_string(
    'source', None, 'Dataset family, a name in sphinx_jax/datasets/__init__.py.', required=True
  )
  cli.define_path('root', None, "Root directory of the dataset's published files.", required=True)
  cli.define_path(
    'output', None, 'Output folder. With --beam it may be in a bucket (gs://...).', required=True
  )
  flags.DEFINE_string('split', '', "The dataset's own name of the split. Default: its usual split.")
  flags.DEFINE_string('task', '', "Task of the records. Default: the dataset's usual task.")
  flags.DEFINE_integer(
    'max_turns', 1, 'Largest number of questions about one image in a record.', lower_bound=1
  )
  flags.DEFINE_multi_string('set', [], 'Setting of the source, key=value. May be repeated.')
  flags.DEFINE_string('name', '', 'Name of the TFDS dataset. Default: the name of the source.')
  flags.DEFINE_integer(
    'shard',
    2000,
    'Items per shard. A dataset of many tar or parquet files has one shard per file instead.',
    lower_bound=1,
  )
  flags.DEFINE_integer(
    'processes', 2, 'Processes on this machine that write shards.', lower_bound=1
  )
  flags.DEFINE_bool('beam', False, 'Write the shards with Apache Beam.')
  flags.DEFINE_string('beam_runner', 'DirectRunner', 'Runner of the Beam pipeline.')
  flags.DEFINE_multi_string(
    'beam_option', [], 'Option of Beam, for example project=x. May be repeated.'
  )
  cli.run(main)
