"""The files of a processor of HF transformers: tokenizer, chat template, how to generate."""

import json
from typing import Any

from sphinx_jax.checkpoint.bundle import Bundle
from sphinx_jax.core import errors
from sphinx_jax.data import dialog

_PLAIN = dict(lstrip=False, normalized=False, rstrip=False, single_word=False, special=True)


def make(bundle: Bundle) -> dict[str, str]:
  """Returns name -> text of the files beside tokenizer.model (or .json) and the weights.

  Args:
    bundle: of a checkpoint that was not imported from such files.

  Raises:
    SphinxError: there is no tokenizer.
  """
  tokenizer, template = bundle.open_tokenizer(), dialog.Template(**bundle.dialog)
  if tokenizer is None:
    raise errors.make(
      '--to=hf',
      'a checkpoint without a tokenizer',
      'one that carries it',
      'convert its source again with --tokenizer=FILE',
    )
  ids = dict(sorted(tokenizer.specials.items(), key=lambda item: item[1]))
  names = {i: text for text, i in ids.items()}
  bos, eos = names[tokenizer.bos], names[tokenizer.eos]
  first = next(iter(ids))  # The unknown token pads, too.
  contents: dict[str, Any] = {
    'tokenizer_config.json': dict(
      tokenizer_class='LlamaTokenizer',
      add_bos_token=True,
      add_eos_token=False,
      added_tokens_decoder={
        str(i): {'content': text, **_PLAIN, 'special': text in ids}
        for text, i in {**ids, **tokenizer.words}.items()
      },
      additional_special_tokens=[text for text in ids if text not in (first, bos, eos)],
      bos_token=bos,
      eos_token=eos,
      pad_token=first,
      unk_token=first,
      clean_up_tokenization_spaces=False,
      legacy=True,
      spaces_between_special_tokens=False,
    ),
    'generation_config.json': dict(
      bos_token_id=tokenizer.bos,
      eos_token_id=sorted({tokenizer.eos, *(ids[text] for text in template.stop_tokens)}),
      pad_token_id=ids[first],
      bad_words_ids=[[i] for i in sorted(ids[text] for text in template.image_tokens)],
    ),
  }
  if template.jinja:
    contents['chat_template.json'] = {'chat_template': template.jinja}
  return {name: json.dumps(content, indent=2) + '\n' for name, content in contents.items()}
