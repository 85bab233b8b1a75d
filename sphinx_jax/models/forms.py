"""All forms of other libraries' weights, by the part of a model that they hold."""

from collections.abc import Iterator

import ml_collections

from sphinx_jax.models import foreign, idefics2
from sphinx_jax.models.encoders import clip, convnext, dinov2, qformer
from sphinx_jax.models.llms import llama, mixtral

# Part -> its forms. 'model' is a whole model; the official SPHINX is in variants.py.
FORMS = {
  'model': idefics2.FORMS,
  'llm': {**mixtral.FORMS, **llama.FORMS},  # LLaMA has some of Mixtral's names.
  'clip': clip.FORMS,
  'convnext': convnext.FORMS,
  'dinov2': dinov2.FORMS,
  'qformer': qformer.FORMS,
}


def whole(config: ml_collections.ConfigDict) -> foreign.Form | None:
  """The form in which HF transformers has a whole model; None if it has no such model."""
  return FORMS['model'].get(config.get('name'))


# Kind of language model -> the form in which HF transformers has it.
HUGGINGFACE = {'llama': llama.FORMS['hf'], 'mixtral': mixtral.FORMS['mixtral_hf']}


def is_transformers(part: str, name: str) -> bool:
  """Whether HF transformers loads a folder of this form as a model."""
  if part == 'llm':
    return FORMS['llm'].get(name) in HUGGINGFACE.values()
  return part == 'model' and name in FORMS['model']


def each() -> Iterator[tuple[str, str, foreign.Form]]:
  """Yields (part, name of the form, form) of all forms."""
  for part, of_part in FORMS.items():
    for name, form in of_part.items():
      yield part, name, form
