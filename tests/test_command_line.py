"""A wrong command line or config file ends an entry point with one clear line and exit code 2."""

import functools
import os
import pathlib
import shlex
import signal
import subprocess
import sys

import pytest

from sphinx_jax.core import cli, errors
from tests import command

ROOT = pathlib.Path(__file__).parent.parent


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--workdri=x'], 'Did you mean: workdir'),
    (['--config=mini', '--config.stage2.optimizer.lrr=1'], "did you mean 'lr'?"),
    (['--config=configs/mini.py', '--config.stage2.steps=many'], 'stage2.steps'),
    (['--config=configs/mni.py'], "--config: got 'configs/mni.py'"),
    (['--config=mni'], "did you mean 'mini'?"),
    (
      ['--config=mini:quik'],
      "got 'quik', expected one of dataset_files, learned, moe, quick, siglip; "
      "did you mean 'quick'?",
    ),
    (['stray'], "command line: got 'stray'"),
    (['--config.stage2.steps=3', 'stray'], "command line: got 'stray'"),
  ],
)
def test_a_wrong_command_line_gets_one_clear_line(
  arguments, message, tmp_path, capsys, monkeypatch
):
  monkeypatch.chdir(ROOT)
  flags = f'--workdir={tmp_path / "run"}', *arguments
  assert message in command.error(capsys, 'recipe', *flags)
  assert not (tmp_path / 'run').exists()


def test_an_error_in_a_config_file_is_one_line_too(tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'mine.py').write_text('import jax\nimport no_such_module\n')
  error = command.error(capsys, 'train', '--config=mine.py', '--workdir=run')
  assert "No module named 'no_such_module'" in error
  assert f'{tmp_path}/mine.py, line 2' in error


@pytest.mark.parametrize(
  'text, message',
  [
    ('def get_config(:', r'SyntaxError: .* in .*mine.py, line 1'),
    ('def get_config():\n  return 1 / 0', r'ZeroDivisionError: .* in .*mine.py, line 2'),
    (
      'import json\ndef get_config():\n\n  return json.loads("{")',
      r'JSONDecodeError: .* in .*mine.py, line 4',
    ),
    ('def get_config():\n  return 3', 'get_config returned int, not a ConfigDict'),
    ('x = 1', "no attribute 'get_config'"),
    (
      'from sphinx_jax.configs import mini\ndef get_config(arg):\n'
      '  config = mini.get_config()\n  config.stpes = 1\n  return config',
      r'Did you mean "steps".* line 4',
    ),
  ],
)
def test_every_exception_of_a_config_file_has_its_file_and_line(text, message, tmp_path):
  (tmp_path / 'mine.py').write_text(text)
  with pytest.raises(errors.SphinxError, match=message):
    cli.load_config(f'{tmp_path}/mine.py' + (':x' if '(arg)' in text else ''))


def test_overrides_may_stand_anywhere_and_without_an_equals_sign(tmp_path):
  (tmp_path / 'mine.py').write_text('def get_config(arg=""):\n  return dict(a=dict(b=1), c=True)\n')
  code = (
    'import sys; from sphinx_jax.core import cli; cli.define_config()\n'
    'cli.run(lambda: print(cli.FLAGS.config.to_dict(), cli.FLAGS.config.is_locked))'
  )
  overrides = ['--config.a.b', '5', '--config=mine.py', '--noconfig.c']
  done = subprocess.run(
    [sys.executable, '-c', code, *overrides], cwd=tmp_path, capture_output=True, text=True
  )
  assert done.stdout.strip() == "{'a': {'b': 5}, 'c': False} True", done.stderr


def test_a_workdir_of_another_config_is_refused(tmp_path, capsys):
  (tmp_path / 'config.json').write_text('{"steps": ["other"]}')
  error = command.error(capsys, 'recipe', f'--workdir={tmp_path}')
  assert 'a run of another config (steps:' in error


def test_help_shows_the_flags_and_what_the_command_does():
  """In a process of its own, as users start it; the tests above save the seconds it takes."""
  done = subprocess.run(
    [sys.executable, '-m', 'sphinx_jax.recipe', '--help'], cwd=ROOT, capture_output=True, text=True
  )
  assert "the paper's recipe" in done.stdout
  assert '--workdir' in done.stdout and '--config' in done.stdout


_SCRIPT = """
import os, sys, threading, time
from sphinx_jax.core import cli

def ready():  # Unbuffered: Ctrl-C inside of a flush would leave the line in the buffer.
  os.write(1, b'ready\\n')

def lines():
  for i in range(100_000): print(i)

def text():
  print('caf\\u00e9 \\U0001f600 \\ud83d')
  print('short\\x1b', file=sys.stderr)

def refuse():
  raise cli.errors.SphinxError("'\\x1b[2J\\u00e9\\ud83d' is wrong")

def slow_end():
  try:
    ready()
    time.sleep(600)
  finally:
    print('ending', flush=True)
    time.sleep(600)

def thread_at_the_end():
  threading.Thread(target=time.sleep, args=(600,)).start()
  ready()
  time.sleep(600)

cli.run(globals()[sys.argv.pop()])
"""


_IMPORTS = """
import os, sys, time
sys.argv = ['-m']  # As Python has it while `python -m sphinx_jax.NAME` imports the package.
import sphinx_jax
os.write(1, b'ready\\n')
time.sleep(600)
"""


def _start(name, script=_SCRIPT, stdout=subprocess.PIPE, **environment):
  """Starts the script without a terminal and without a home directory."""
  kept = {key: value for key, value in os.environ.items() if key not in ('HOME', 'PYTHONUTF8')}
  return subprocess.Popen(
    [sys.executable, '-c', script, *name.split()],
    stdin=subprocess.DEVNULL,
    stdout=stdout,
    stderr=subprocess.PIPE,
    env=kept | environment,
    # Tests may run in the background, where children ignore Ctrl-C.
    preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
  )


def test_programs_end_cleanly_without_a_reader_a_locale_or_patience():
  closed = _start('text')
  closed.stdout.close()  # Long before the only flush of its short output.
  # All are started at once, because each takes a second to start.
  with open('/dev/full', 'w') as full_disk:
    full = [_start(name, stdout=full_disk) for name in ('lines', 'text', 'refuse')]
  importing = _start('', _IMPORTS)
  head, text, refused, impatient, threaded = (
    _start('lines'),
    _start('text', PYTHONIOENCODING='ascii', LC_ALL='C'),
    _start('refuse', LC_ALL='C'),
    _start('slow_end'),
    _start('thread_at_the_end'),
  )
  assert head.stdout.readline() == b'0\n'
  head.stdout.close()
  for process in (head, closed):
    process.wait()
    assert process.returncode == 141 and b'rror' not in process.stderr.read()

  for process, words in zip(full, (b'/dev/stdout', b'/dev/stdout', b'is wrong')):
    _, error = process.communicate()
    assert process.returncode == 2 and error.count(b'error: ') == 1 and words in error
    assert b'Traceback' not in error

  out, _ = text.communicate()
  assert (out, text.returncode) == (b'caf\\xe9 \\U0001f600 \\ud83d\n', 0)
  _, error = refused.communicate()
  assert (
    refused.returncode == 2 and error.startswith(b"error: '\\x1b[2J") and error.count(b'\n') == 1
  )

  for process in (impatient, threaded, importing):
    assert process.stdout.readline() == b'ready\n'
    process.send_signal(signal.SIGINT)
  assert impatient.stdout.readline() == b'ending\n'
  assert threaded.stderr.readline().startswith(b'error: interrupted')
  for process, code, end in (
    (impatient, 130, b'error: interrupted'),
    (threaded, -2, b''),
    (importing, -2, b''),
  ):
    if process.poll() is None:
      process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == code and error.startswith(end) and error.count(b'\n') <= 1


def test_a_closed_stdout_is_no_error():
  line = f'{shlex.quote(sys.executable)} -c {shlex.quote(_SCRIPT)} text >&- 2>&-'
  assert subprocess.run(['bash', '-c', line]).returncode == 0
