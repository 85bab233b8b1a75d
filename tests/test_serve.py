"""The command of the server: `python -m sphinx_jax.serve`."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request

import openai
import pytest

from tests import command
from tests.generate import small as tiny
from tests.serving import small

QUESTION = 'What is the color?'


def test_the_command_serves_and_sigterm_lets_answers_end(tmp_path):
  checkpoint = tiny.save(tmp_path / 'tiny')
  arguments = [f'--checkpoint={checkpoint}', '--port=0', '--slots=2', '--max_length=192']
  process = subprocess.Popen(
    [sys.executable, '-m', 'sphinx_jax.serve', *arguments], stderr=subprocess.PIPE, text=True
  )
  log = []
  try:
    for line in process.stderr:
      log.append(line)
      if match := re.search(r'http://127.0.0.1:(\d+)/v1', line):
        break
    assert any('nothing is compiled later' in line for line in log), log
    client, port = small.client(int(match[1])), int(match[1])
    texts = []

    def ask():
      options = dict(messages=small.messages(QUESTION), temperature=0, max_tokens=150, n=8)
      answer = client.chat.completions.create(model='tiny', **options)
      texts.extend(choice.message.content for choice in answer.choices)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
      thread.start()
    wait_for_answers(port, 25)
    process.send_signal(signal.SIGTERM)
    for thread in threads:
      thread.join()
    assert texts == small.model().answers([[(QUESTION, None)]], max_new_tokens=150) * 32
    assert process.wait(timeout=30) == 0
    assert 'all requests have ended' in process.stderr.read()
    with pytest.raises(openai.APIConnectionError):
      ask()
  finally:
    process.kill()
    process.wait()
    process.stderr.close()


def wait_for_answers(port, count):
  """Until that many answers of the server run or wait for a slot."""
  end, found = time.monotonic() + 20, 0
  while found < count:
    assert time.monotonic() < end
    page = urllib.request.urlopen(f'http://127.0.0.1:{port}/metrics').read().decode()
    numbers = re.findall(r'^sphinx_jax_(?:queue|slots_used) (\S+)', page, re.MULTILINE)
    found = sum(map(float, numbers))


def test_a_port_that_is_taken_is_one_clear_line(capsys, tmp_path):
  with socket.socket() as taken:
    taken.bind(('127.0.0.1', 0))
    taken.listen()
    port = taken.getsockname()[1]
    line = command.error(capsys, 'serve', f'--checkpoint={tmp_path}', f'--port={port}')
  assert f'--port={port}' in line and 'choose another one' in line


def test_wrong_flags_are_refused(capsys, tmp_path):
  checkpoint = f'--checkpoint={tmp_path}'
  (tmp_path / 'keys').write_text('\n')
  keys = f'--api_key_file={tmp_path / "keys"}'
  assert 'no key' in command.error(capsys, 'serve', checkpoint, keys)
  assert 'checkpoint' in command.error(capsys, 'serve', checkpoint, '--port=0')


def test_without_the_extra_there_is_one_clear_line(capsys, monkeypatch, tmp_path):
  monkeypatch.setitem(sys.modules, 'uvicorn', None)
  for name in [name for name in sys.modules if name.startswith('sphinx_jax.serving')]:
    monkeypatch.delitem(sys.modules, name)
  assert 'no package uvicorn' in command.error(capsys, 'serve', f'--checkpoint={tmp_path}')


def test_the_extra_names_all_that_the_server_imports():
  """Nothing else needs the packages of the extra."""
  code = 'import sys, sphinx_jax.chat, sphinx_jax.generate.load; print(*sys.modules)'
  loaded = subprocess.run(
    [sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=os.environ
  )
  assert not {'fastapi', 'uvicorn', 'prometheus_client'} & set(loaded.stdout.split())
