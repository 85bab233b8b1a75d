"""How a question of several choices is written: the form of ScienceQA and MMMU in the official annotation files."""

from collections.abc import Mapping

# The straight quotation mark in "option"s" is the official files' own, and what the released weights were trained on.
_ASK = 'Answer with the option"s letter from the given choices directly.'


def write(question: str, choices: Mapping[str, str], context: str = '') -> str:
  """'Question:\\n...\\nChoices:\\nA. ...\\nB. ...\\nAnswer with ...', after 'Context:\\n...' where there is one."""
  before = f'Context:\n{context}\n' if context else ''
  listed = '\n'.join(f'{letter}. {text}' for letter, text in choices.items())
  return f'{before}Question:\n{question}\nChoices:\n{listed}\n{_ASK}'
