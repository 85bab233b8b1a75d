import io
import sys

import numpy as np
import pytest
from PIL import Image

from sphinx_jax import chat
from sphinx_jax.core import errors, text
from sphinx_jax.generate.model import Model
from tests.generate import small


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small.save(tmp_path_factory.mktemp('run'))


@pytest.fixture
def image_file(tmp_path):
  Image.fromarray(small.images(1)[0][:, :12]).save(tmp_path / 'cat.png')
  return tmp_path / 'cat.png'


def test_the_command_answers_as_the_model_does(checkpoint, image_file, capsys):
  chat.chat(checkpoint, image_file, 'What is the color?', '', max_new_tokens=6)
  image = small.images(1)[0][:, :12]
  turns = [('What is the color?', None)]
  (expected,) = small.model().answers([turns], [image], max_new_tokens=6)
  assert expected and capsys.readouterr().out == f'{expected}\n'


def test_transparent_pixels_are_shown_as_the_model_was_trained(tmp_path, monkeypatch, caplog):
  """The setting is in the checkpoint, also of a run that has no such setting."""
  clear = np.zeros((16, 16, 4), np.uint8)
  Image.fromarray(clear).save(tmp_path / 'clear.png')
  seen = []
  monkeypatch.setattr(Model, 'encode', lambda self, images: seen.extend(images))
  answer_with(monkeypatch, 'yes')
  monkeypatch.setattr(chat.log, 'propagate', True)
  for name, settings, shade in (
    ('old', {}, 0),
    ('drop', {'image': {'alpha': 'drop'}}, 0),
    ('white', {'image': {'alpha': 'white'}}, 255),
  ):
    with caplog.at_level('INFO'):
      chat.chat(small.save(tmp_path / name, **settings), tmp_path / 'clear.png', 'x', '')
    assert (seen[-1] == shade).all()
    assert 'the image has transparent pixels' in caplog.text


def test_a_conversation_remembers_its_turns_and_its_image(
  checkpoint, image_file, monkeypatch, capsys
):
  monkeypatch.setattr(sys, 'stdin', io.StringIO('red\nblue\n'))
  chat.chat(checkpoint, image_file, None, '', max_new_tokens=5)
  model, image = small.model(), small.images(1)[0][:, :12]
  (first,) = model.answers([[('red', None)]], [image], max_new_tokens=5)
  (second,) = model.answers([[('red', first), ('blue', None)]], [image], max_new_tokens=5)
  assert capsys.readouterr().out == f'{first}\n{second}\n'


def answer_with(monkeypatch, answer):
  """Makes every model give this answer; returns the list of dialogs that it is asked."""
  dialogs = []
  monkeypatch.setattr(Model, 'answers', lambda self, asked, **_: dialogs.extend(asked) or [answer])
  return dialogs


def test_boxes_of_the_answer_are_drawn_on_the_original_image(
  checkpoint, image_file, tmp_path, monkeypatch, capsys
):
  answer_with(monkeypatch, '[0.25, 0.25, 0.75, 0.75]')
  output = tmp_path / 'answer.png'
  chat.chat(checkpoint, image_file, 'Where?', output)
  drawn = np.asarray(Image.open(output).convert('RGB')).astype(int)
  plain = np.asarray(
    Image.open(image_file).convert('RGB').resize(drawn.shape[1::-1], Image.Resampling.NEAREST)
  )
  ys, xs = np.nonzero((drawn != plain).any(-1))
  scale = drawn.shape[0] / 16  # 12 x 16 pixels; the padding is 2 on the left
  assert (
    np.abs(np.array([xs.min(), ys.min(), xs.max(), ys.max()]) / scale - [2, 4, 10, 12]).max() < 0.2
  )
  assert f'drawn: {output}' in capsys.readouterr().out


def test_a_terminal_shows_an_answer_while_it_is_made(checkpoint, image_file, monkeypatch, capsys):
  shown = []
  monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
  monkeypatch.setattr(chat.Shown, 'show', lambda self, piece: shown.append(piece))
  chat.chat(checkpoint, image_file, 'What is the color?', '', max_new_tokens=20)
  monkeypatch.undo()
  (whole,) = capsys.readouterr().out.splitlines()
  image = small.images(1)[0][:, :12]
  turns = [('What is the color?', None)]
  (expected,) = small.model().answers([turns], [image], max_new_tokens=20)
  assert whole == text.printable(expected)  # What was not shown, which is all of it here.
  assert len(shown) > 2 and expected.startswith(''.join(shown))
  one = chat.Shown()
  one.show('red\x1b ci')
  one.end('red\x1b circle')
  assert capsys.readouterr().out == 'red\\x1b circle\n'


def test_an_answer_without_places_writes_no_image(checkpoint, image_file, tmp_path, monkeypatch):
  answer_with(monkeypatch, 'a red circle')
  chat.chat(checkpoint, image_file, 'What?', tmp_path / 'answer.png')
  assert not (tmp_path / 'answer.png').exists()


def test_without_a_prompt_lines_are_asked_in_one_conversation(checkpoint, monkeypatch, capsys):
  dialogs = answer_with(monkeypatch, 'yes')
  monkeypatch.setattr(sys, 'stdin', io.StringIO('one?\ntwo?\n'))
  chat.chat(checkpoint, None, None, '')
  assert dialogs == [[('one?', None)], [('one?', 'yes'), ('two?', None)]]
  assert capsys.readouterr().out == 'yes\nyes\n'


@pytest.mark.parametrize('content', [None, b'not an image', b'\x89PNG\r\n\x1a\n\x00\x00'])
def test_an_image_that_cannot_be_read_is_one_clear_line(content, tmp_path):
  path = tmp_path / 'x.png'
  if content is not None:
    path.write_bytes(content)
  with pytest.raises(errors.SphinxError, match='x.png') as error:
    chat.read_image(path)
  assert '\n' not in str(error.value) and 'expected' in str(error.value)


def test_a_folder_that_is_no_checkpoint_is_one_clear_line(tmp_path):
  with pytest.raises(errors.SphinxError, match='checkpoint'):
    chat.chat(tmp_path, None, 'hi', '')


def test_an_output_that_cannot_be_written_is_one_clear_line(checkpoint, image_file, monkeypatch):
  answer_with(monkeypatch, '[0.25, 0.25, 0.75, 0.75]')
  with pytest.raises(errors.SphinxError, match='--output'):
    chat.chat(checkpoint, image_file, 'Where?', '/nowhere/answer.png')


def test_a_prompt_that_is_not_unicode_is_refused_before_the_weights_are_read(tmp_path):
  """A terminal in Latin-1 gives such text: Python keeps its bytes as halves of surrogate pairs."""
  with pytest.raises(errors.SphinxError, match=r"--prompt: got 'caf\\udce9', which is not unicode"):
    chat.chat(tmp_path / 'nothing', None, 'caf\udce9', '')


def test_a_question_that_is_not_unicode_is_refused(checkpoint, monkeypatch):
  monkeypatch.setattr(sys, 'stdin', io.StringIO('caf\udce9\n'))
  with pytest.raises(errors.SphinxError, match='not unicode'):
    chat.chat(checkpoint, None, None, '')
