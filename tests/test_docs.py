"""Every command in README and docs/ is run here, or by the test or CI step that is named here."""

import pathlib
import re
import shlex

import pytest
from PIL import Image

from tests import command as entry_points

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
CHAT = 'python -m sphinx_jax.chat --checkpoint='
PREDICT = 'python -m sphinx_jax.predict --checkpoint=workdir/mini/stage2 --input='
EVALUATE = 'python -m sphinx_jax.evaluate --checkpoint='

# Beginnings of commands that other tests or CI run, with the place that runs them.
ELSEWHERE = {
  'git clone': '.ci/run',  # CI starts from a clone.
  'pip install': 'launch/environment.sh',  # The same installation, into .venv.
  'bash launch/local.sh': 'tests/recipe_run.py',
  'bash launch/demo.sh': 'tests/launch/test_demo.py',
  'bash launch/lint.sh': '.ci/run',
  'bash launch/test.sh': '.ci/run',
  'bash .ci/run': '.ci/run',
  'bash benchmarks/accelerator.sh': 'tests/test_accelerator.py',
  'bash launch/tpu_queued.sh': 'tests/launch/test_tpu.py',
  'python -m sphinx_jax.convert': 'tests/test_convert.py',
  'python -m sphinx_jax.mix_curve': 'tests/test_mix_curve.py',
  'python -m sphinx_jax.mix_stats': 'tests/test_mix_stats.py',
  'python -m sphinx_jax.mix_weights': 'tests/checkpoint/foreign/test_mixing.py',
  f'{CHAT}BASE --adapter=DIR': 'tests/test_adapter_commands.py',
  'python -m sphinx_jax.prepare': 'tests/test_prepare.py',
  'python -m sphinx_jax.study': 'tests/test_study.py',
  'python -m sphinx_jax.upcycle': 'tests/checkpoint/test_upcycled.py',
  'python -m sphinx_jax.serve': 'tests/test_serve.py',
  'python -m tests.serving.screenshot': 'tests/serving/test_page.py',
  'python -m sphinx_jax.recipe --config=mini_idefics': 'tests/test_mini_idefics.py',
  'python -m sphinx_jax.recipe --config=mini:learned': 'tests/test_learned_weights.py',
  'python -m sphinx_jax.peek --config=stage2': 'tests/test_peek.py',
  f'{EVALUATE}DIR --benchmarks': 'tests/test_evaluate.py',
  f'{EVALUATE}BASE --adapter=ADAPTER --output=SCORES': 'tests/test_adapter_commands.py',
  'python -m sphinx_jax.evaluate --predictions': 'tests/test_evaluate.py',
  'python -m sphinx_jax.evaluate --server': 'tests/test_evaluate.py',
  # Other projects' commands, whose requests are sent there.
  'python -m lmms_eval': 'tests/serving/test_harnesses.py',
  'python run.py': 'tests/serving/test_harnesses.py',
}
# Commands that run here, in this order, with what makes them short.
HERE = (
  f'{CHAT}workdir/mini/stage2 --image=cat.png --prompt="Detect all objects."',
  'python -m sphinx_jax.peek --config=mini',
  'python -m sphinx_jax.peek --config=forkme:my.jsonl,DIR',
  'python -m sphinx_jax.mix_weights --inputs=REAL,SYNTHETIC --coefficients=0.5,0.5 --output=MIXED',
  'python -m sphinx_jax.train --config=forkme:my.jsonl,workdir/mini/stage2 --workdir=workdir/mine',
  f'{CHAT}workdir/mine --image=cat.png --prompt="What is this?"',
  'python -m sphinx_jax.train --config=forkme:my.jsonl,BASE,qlora --workdir=ADAPTER '
  "--config.lora.rank=16 --config.lora.target='llm/layers/attention/.*' "
  """--config.tokenizer_add='["<loc_0000>", "<loc_0001>"]'""",
  f'{CHAT}BASE --adapter=ADAPTER --image=cat.png --prompt="What is this?"',
  'python -m sphinx_jax.mix_weights --inputs=BASE+ADAPTER --output=MERGED',
  'python -m sphinx_jax.convert --source=BASE --output=QUANTIZED --quantize=int8',
  'python -m sphinx_jax.train --config=forkme:pairs.jsonl,BASE,dpo --workdir=TUNED '
  '--config.preference.beta=0.1',
  f'{EVALUATE}workdir/mini/stage2 --output=OUT --tasks=vqa --examples=8',
  f'{PREDICT}photos --prompt="Detect all objects." --output=labels.jsonl --schema=boxes',
  f'{PREDICT}photos --prompt="Detect all objects." --output=labels.jsonl --schema=boxes '
  '--coco=labels.json --draw=drawn',
  f'{PREDICT}questions.jsonl --output=answers.jsonl',
  'python -m sphinx_jax.plan --config=stage2:13b,1k --topology=v5p:2x2x2',
)
SHORTER = {
  'chat': ['--max_new_tokens=8'],
  'predict': ['--max_new_tokens=8'],
  'train': [
    '--config.steps=2',
    '--config.checkpoint.every=2',
    '--config.eval_every=2',
    '--config.batch.size=2',  # All examples fit in two rows.
    '--config.eval_batches=1',
  ],
  'plan': ['--nocompile'],
}


def commands(page):
  """The shell commands of a page's bash blocks, without comments."""
  found = []
  for block in re.findall(r'```bash\n(.*?)```', page.read_text(), re.DOTALL):
    for line in block.replace('\\\n', ' ').splitlines():
      line = re.sub(r'\s+#.*', '', line)
      found += [' '.join(part.split()) for part in line.split(' && ') if part.strip()]
  return found


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_run_somewhere(page):
  for command in commands(page):
    if command in HERE or command.startswith(('cd ', 'source .venv/bin/activate')):
      continue
    places = [place for begin, place in ELSEWHERE.items() if command.startswith(begin)]
    assert places, f'{page.name}: nothing runs {command!r}'
    assert all((ROOT / place).exists() for place in places)


def test_every_command_run_here_is_on_a_page():
  written = [command for page in PAGES for command in commands(page)]
  assert not set(HERE) - set(written)


def test_pages_link_to_files_that_exist():
  for page in PAGES:
    for target in re.findall(r'\]\(([^)#]+)\)', page.read_text()):
      if not target.startswith('http'):
        assert (page.parent / target).exists(), f'{page.name}: {target}'


@pytest.fixture(scope='module')
def folder(finished_recipe, tmp_path_factory):
  """A newcomer's folder after the recipe: its run, an image and a JSONL file."""
  folder = tmp_path_factory.mktemp('newcomer')
  (folder / 'workdir').mkdir()
  (folder / 'workdir' / 'mini').symlink_to(finished_recipe)
  Image.new('RGB', (64, 48), 'red').save(folder / 'cat.png')
  example = re.search(r'```json\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)[1]
  (folder / 'my.jsonl').write_text(example * 8)
  pair = re.search(r'{.*"rejected".*}', (ROOT / 'docs/weights.md').read_text())[0]
  (folder / 'pairs.jsonl').write_text(f'{pair}\n' * 8)
  (folder / 'photos').mkdir()
  (folder / 'photos' / 'cat.png').symlink_to(folder / 'cat.png')
  predict = (ROOT / 'docs/predict.md').read_text()
  questions = re.search(r'```json\n({"id".*?)```', predict, re.DOTALL)[1]
  (folder / 'questions.jsonl').write_text(questions)
  return folder


@pytest.mark.parametrize('command', HERE)
def test_a_command_works_as_written(command, folder, capsys, monkeypatch):
  """In this process, which has imported what a new one takes seconds to import."""
  name = command.split()[2].removeprefix('sphinx_jax.')
  words = shlex.split(command)[3:] + SHORTER.get(name, [])
  places = {
    'forkme:my.jsonl,DIR': 'forkme:my.jsonl,workdir/mini/stage2',
    'REAL,SYNTHETIC': 'workdir/mini/real,workdir/mini/synthetic',
    'BASE': 'workdir/mini/stage2',
    'ADAPTER': 'workdir/adapter',
    'QUANTIZED': 'workdir/quantized',
  }
  for placeholder, place in places.items():
    words = [word.replace(placeholder, place) for word in words]
  monkeypatch.chdir(folder)
  code, printed, log = entry_points.run(capsys, name, *words)
  assert code == 0, '\n'.join((name, *words, printed, log))
  assert 'Traceback' not in log
