"""The published benchmarks' own metrics, each with the official SPHINX script's reading of it.

Every file scores one answer by a pure function and, as `score`, a list of entries: lines of the official annotation
files ('gt_answers', 'question_id', 'image_path', ...) with the model's 'answer' added. The benchmark's own definition is
the default; `official=True` repeats what the SPHINX script computes (FACTS "Evaluation quirks"), for numbers that are
to be compared with the released ones.
"""

from sphinx_jax.core.tables import Table

# The names are the "metric" of the official annotation_config.json; the script knows GQA by the data set's name instead.
_MODULES = {
  'vqa_score': 'vqa',
  'anls': 'anls',
  'accuracy': 'multiple_choice',
  'gqa_accuracy': 'gqa',
  'relaxed_accuracy': 'relaxed',
  'miou0.5': 'rec',
  'mme_score': 'mme',
  # Not in that file:
  'pope': 'pope',
  'mmbench': 'mmbench',
  'seed_bench': 'seed',
  'coco_ap': 'coco_ap',
  'coco_oks': 'coco_oks',
  'caption': 'caption',
  'phrase_grounding': 'grounding',
}
_PLACES = {name: f'sphinx_jax.evaluation.protocols.{module}' for name, module in _MODULES.items()}

# (entries, official=False) -> {metric: value}.
PROTOCOLS = Table('protocol', {name: f'{place}:score' for name, place in _PLACES.items()})
# (entries, official=False) -> [how good each answer is, in [0, 1], or None where that has no meaning]; for best and worst.
EACH = Table('protocol', {name: f'{place}:each' for name, place in _PLACES.items()})
