"""The published benchmarks' own metrics, each with the official SPHINX script's reading of it.

Every file scores one answer by a pure function and, as `score`, a list of entries: lines of the official annotation
files ('gt_answers', 'question_id', 'image_path', ...) with the model's 'answer' added. The benchmark's own definition is
the default; `official=True` repeats what the SPHINX script computes (FACTS "Evaluation quirks"), for numbers that are
to be compared with the released ones.
"""

from sphinx_jax.core.tables import Table

# The names are the "metric" of the official annotation_config.json; the script knows GQA by the data set's name instead.
PROTOCOLS = Table('protocol', {
    'vqa_score': 'sphinx_jax.evaluate.protocols.vqa:score',
    'anls': 'sphinx_jax.evaluate.protocols.anls:score',
    'accuracy': 'sphinx_jax.evaluate.protocols.multiple_choice:score',
    'gqa_accuracy': 'sphinx_jax.evaluate.protocols.gqa:score',
    'relaxed_accuracy': 'sphinx_jax.evaluate.protocols.relaxed:score',
    'miou0.5': 'sphinx_jax.evaluate.protocols.rec:score',
    'mme_score': 'sphinx_jax.evaluate.protocols.mme:score',
})
