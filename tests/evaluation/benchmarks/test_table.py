"""configs/benchmarks.py: the official prompts, and rows that fit their readers and protocols."""

import inspect

import pytest

from sphinx_jax.configs import benchmarks
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data.dialog import STYLES
from sphinx_jax.evaluation.benchmarks import benchmark as base
from sphinx_jax.evaluation.protocols import PROTOCOLS
from sphinx_jax.evaluation.submissions import SUBMISSIONS
from sphinx_jax.tasks import TASKS, questions
from tests.evaluation.benchmarks.benchmark_files import CONFIG

TABLE = benchmarks.get_config()
LEFT_OUT = {name for name, row in CONFIG.items() if row['metric'] == 'ureader'}


def test_every_official_benchmark_is_there_but_those_of_another_scorer():
  assert set(CONFIG) - set(TABLE) == LEFT_OUT
  assert all(name in benchmarks.__doc__ for name in LEFT_OUT)


@pytest.mark.parametrize('name', sorted(set(CONFIG) & set(TABLE)))
def test_prompts_lengths_files_and_metrics_are_the_official_ones(name):
  row, theirs = TABLE[name], CONFIG[name]
  assert (row.prompt, row.prefix) == (theirs['prompt']['input'], theirs['prompt']['output'])
  assert (row.max_new_tokens, row.file) == (theirs['max_new_tokens'], theirs['test'])
  # The official script scores GQA by the name of its dataset.
  assert row.protocol == ('gqa_accuracy' if name == 'gqa_testdev' else theirs['metric'])
  if 'annotation' in theirs:
    assert theirs['annotation'] in (
      [row.annotation] if isinstance(row.annotation, str) else row.annotation
    )


@pytest.mark.parametrize('name', TABLE)
def test_every_row_fits_its_reader_and_protocol(name, tmp_path):
  row = TABLE[name]
  assert row.protocol in PROTOCOLS and row.note.startswith(benchmarks.NOT_RUN)
  assert row.hidden == (name in SUBMISSIONS)
  assert row.published is None or row.published > 0
  own = [key for key in row if key not in base.COMMON_KEYS]
  inspect.signature(base.READERS[row.reader]).bind(
    'name', tmp_path, 'prompt', **{key: row[key] for key in own}
  )
  with pytest.raises(SphinxError):  # There are no files. The error must be one for the user.
    base.open_benchmark(name, row, tmp_path)


@pytest.mark.parametrize(
  'name, task',
  [
    ('coco_detection_val2017', 'detection'),
    ('coco_pose_val2017', 'pose'),
    ('doclaynet_test', 'layout'),
    ('coco_caption_karpathy_test', 'caption'),
    ('coco_caption_val2017', 'caption'),
    ('nocaps_val', 'caption'),
    ('flickr30k_grounding_test', 'rec'),
  ],
)
def test_prompts_that_are_not_official_are_trained_on(name, task):
  assert TABLE[name].prompt in TASKS[task].instructions


def test_an_argument_is_refused():
  with pytest.raises(SphinxError, match='argument of configs/benchmarks.py'):
    benchmarks.get_config('quick')


def test_an_unknown_protocol_is_refused_before_anything_is_read(tmp_path):
  with pytest.raises(SphinxError, match="did you mean 'pope'"):
    base.open_benchmark(
      'mine', dict(reader='pope', protocol='popee', prompt='{}', max_new_tokens=3), tmp_path
    )


def test_prompts_of_other_models_belong_to_dialog_templates():
  for row in TABLE.values():
    assert set(row.styles) <= set(STYLES)
    assert all(set(own) <= {'prompt', 'prefix'} for own in row.styles.values())
  assert TABLE.textvqa_val.styles.idefics2.prompt == '{}\nGive a very brief answer.'
  assert not TABLE.gqa_testdev.styles
  asked = [
    questions.ask(TABLE.mmbench_dev.styles.idefics2.prompt, 'Which?', {'A': 'x', 'B': 'y'}, hint)
    for hint in ('Look.', None)
  ]
  assert asked == [
    'Question: Which?\nHint: Look.\nChoices:\nA. x\nB. y\nAnswer with a letter.',
    'Question: Which?\nChoices:\nA. x\nB. y\nAnswer with a letter.',
  ]
