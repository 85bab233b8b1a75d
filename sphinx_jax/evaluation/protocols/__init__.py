"""Metrics of the published benchmarks, each also in the variant of the official SPHINX script.

Each module scores one answer with a pure function. `score` does so for a list of entries: rows of
an annotation file ('gt_answers', 'question_id', 'image_path', ...) with the model's 'answer' added.
The default is the definition of the benchmark. It reads what an answer means, also inside markup
and sentences (core/answers.py, box_forms.py). `official=True` reproduces what the SPHINX script
computes (docs/official_sphinx.md, "Evaluation quirks"), for comparison with the released numbers.
"""

from sphinx_jax.core.tables import Table

# The keys are values of "metric" in the official annotation_config.json. The script selects GQA by
# its dataset name instead.
_MODULES = {
  'vqa_score': 'vqa',
  'anls': 'anls',
  'accuracy': 'multiple_choice',
  'gqa_accuracy': 'gqa',
  'relaxed_accuracy': 'relaxed',
  'miou0.5': 'rec',
  'mme_score': 'mme',
  # Benchmarks that the official config does not have:
  'pope': 'pope',
  'mmbench': 'mmbench',
  'seed_bench': 'seed',
  'coco_ap': 'coco_ap',
  'coco_oks': 'coco_oks',
  'caption': 'caption',
  'phrase_grounding': 'grounding',
}
_PATHS = {name: f'sphinx_jax.evaluation.protocols.{module}' for name, module in _MODULES.items()}

# Each value is a function (entries, official=False) -> {metric: value}.
PROTOCOLS = Table('protocol', {name: f'{path}:score' for name, path in _PATHS.items()})

# Each value is a function (entries, official=False) -> one score in [0, 1] per entry, or None where
# a single answer has no score. The report picks the best and worst answers with it.
PER_EXAMPLE = Table(
  'protocol', {name: f'{path}:per_example_scores' for name, path in _PATHS.items()}
)

# Each value is a function (entries) -> {what is missing in an answer: number of answers}. It counts
# answers from which the default reading of the protocol takes nothing, or something doubtful.
UNREAD = Table(
  'protocol',
  {
    name: f'{_PATHS[name]}:unread'
    for name in (
      *('accuracy', 'mmbench', 'seed_bench', 'mme_score', 'pope'),
      *('miou0.5', 'phrase_grounding', 'coco_ap'),
    )
  },
)
