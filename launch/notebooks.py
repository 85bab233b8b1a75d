"""Writes the repository's address into the notebooks and into README: `python launch/notebooks.py`.

`REPOSITORY` is the only place that has the address. While it is empty, the notebooks ask for it on
Colab and nothing shows an "Open in Colab" badge.
"""

import json
import pathlib
import re

REPOSITORY = ''  # For example 'https://github.com/OWNER/sphinx_jax'.

ROOT = pathlib.Path(__file__).resolve().parent.parent
NAMES = ('colab_recipe', 'colab_finetune', 'colab_lora')
BADGE = 'https://colab.research.google.com/assets/colab-badge.svg'
_BADGES = re.compile(r'\n*<!-- badges -->\n.*?<!-- /badges -->\n', re.DOTALL)


def badge(name: str, repository: str) -> str:
  """The Markdown of a notebook's "Open in Colab" badge; '' without an address."""
  if not repository:
    return ''
  place = repository.removeprefix('https://github.com/').removesuffix('.git').strip('/')
  colab = f'https://colab.research.google.com/github/{place}/blob/main/launch/{name}.ipynb'
  return f'[![Open {name} in Colab]({BADGE})]({colab})'


def notebook(text: str, name: str, repository: str) -> str:
  """A notebook's JSON with the address in its first code cell and the badge under its title."""
  book = json.loads(text)
  title = book['cells'][0]
  lines = [line for line in title['source'] if BADGE not in line]
  while lines and not lines[-1].strip():
    lines.pop()
  lines[-1] = lines[-1].rstrip('\n')
  if repository:
    lines[-1] += '\n'
    lines += ['\n', badge(name, repository)]
  title['source'] = lines
  for cell in book['cells']:
    if cell['cell_type'] == 'code':
      cell['source'] = [
        re.sub(r"^REPOSITORY = '[^']*'", f"REPOSITORY = '{repository}'", line)
        for line in cell['source']
      ]
  return json.dumps(book, indent=1, ensure_ascii=False) + '\n'


def readme(text: str, repository: str) -> str:
  """README with the badges under its title; without them if there is no address."""
  text = _BADGES.sub('\n', text)
  if not repository:
    return text
  badges = '\n'.join(badge(name, repository) for name in NAMES)
  title, rest = text.split('\n', 1)
  return f'{title}\n\n<!-- badges -->\n{badges}\n<!-- /badges -->\n{rest}'


def main() -> None:
  for name in NAMES:
    path = ROOT / 'launch' / f'{name}.ipynb'
    path.write_text(notebook(path.read_text(), name, REPOSITORY))
  path = ROOT / 'README.md'
  path.write_text(readme(path.read_text(), REPOSITORY))


if __name__ == '__main__':
  main()
