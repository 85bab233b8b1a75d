import json
import math

import pytest

from sphinx_jax.core import errors
from sphinx_jax.training import writer
from tests.checkpoint import bucket


def metrics(loss: float = 2.0, norm: float = 1.0) -> dict:
  return {
    'loss': loss,
    'weight': 4.0,
    'task_loss': [loss, 0.0],
    'task_weight': [4.0, 0.0],
    'grad_norm': norm,
    'learning_rate': 0.1,
    'examples': 3,
    'useful': 8,
    'labelled': 4,
    'positions': 10,
  }


def test_window_averages_by_weight_and_leaves_out_absent_tasks():
  window = writer.Window(['vqa', 'ocr'])
  window.add(1, metrics(2.0, 1.0))
  window.add(2, metrics(6.0, 3.0))
  window.read()
  line = window.close()
  assert line['loss'] == line['loss/vqa'] == 1.0 and 'loss/ocr' not in line
  assert line['grad_norm'] == 2.0 and line['useful_share'] == 0.8 and line['learning_rate'] == 0.1
  assert window.state() == {}


def test_a_window_resumes_from_its_state():
  whole, first = writer.Window(['vqa', 'ocr']), writer.Window(['vqa', 'ocr'])
  whole.add(1, metrics(0.1))
  whole.add(2, metrics(0.2))
  whole.read()
  first.add(1, metrics(0.1))
  first.read()
  second = writer.Window(['vqa', 'ocr'], json.loads(json.dumps(first.state())))
  second.add(2, metrics(0.2))
  second.read()
  assert second.state() == whole.state()


def test_skipped_updates_are_counted_and_have_no_gradient_norm(caplog):
  window = writer.Window(['vqa', 'ocr'])
  scaled = lambda norm, skipped, scale: metrics(norm=norm) | dict(skipped=skipped, loss_scale=scale)
  for step, values in enumerate([(3.0, 0, 8.0), (1.0, 0, 8.0), (0.0, 1, 4.0)], 1):
    window.add(step, scaled(*values))
  with caplog.at_level('INFO', 'sphinx_jax'):
    window.read()
  line = window.close()
  assert (line['grad_norm'], line['skipped_updates'], line['loss_scale']) == (2.0, 1, 4.0)
  assert 'step 3: gradients overflow; skipped' in caplog.text


@pytest.mark.parametrize('bad', [dict(loss=math.nan), dict(loss=math.inf), dict(norm=math.nan)])
def test_a_number_that_is_not_finite_is_an_error_that_names_the_window(bad):
  window = writer.Window(['vqa', 'ocr'])
  window.add(6, metrics())
  window.add(7, metrics(**bad))  # Not read yet.
  with pytest.raises(errors.SphinxError, match='steps 6 to 7'):
    window.add(8, metrics())


def test_lines_after_the_restored_step_are_dropped(tmp_path):
  first = writer.Writer(tmp_path, 0)
  for step in (1, 2, 3):
    first.write(step, {'loss': float(step)})
  first.close()
  with (tmp_path / writer.FILE).open('a') as file:
    file.write('{"step": 4, "lo')  # The run was killed while it wrote this line.
  assert [line['step'] for line in writer.read(tmp_path)] == [1, 2, 3]
  second = writer.Writer(tmp_path, 2)
  assert second.last == {'loss': 2.0}
  second.write(3, {'loss': 30.0})
  second.close()
  assert [(line['step'], line['loss']) for line in writer.read(tmp_path)] == [
    (1, 1.0),
    (2, 2.0),
    (3, 30.0),
  ]
  assert len(list((tmp_path / 'tensorboard').glob('events*'))) == 1


def test_other_processes_write_no_files(tmp_path):
  silent = writer.Writer(tmp_path, 0, enabled=False)
  silent.write(1, {'loss': 1.0})
  silent.close()
  assert silent.last == {'loss': 1.0} and not list(tmp_path.iterdir())


def test_lines_are_also_written_to_a_bucket(tmp_path, monkeypatch):
  (tmp_path / 'bucket/run').mkdir(parents=True)
  tensorflow = writer.tensorflow.load()  # TensorFlow's gs:// needs a network.
  monkeypatch.setattr(
    tensorflow.summary, 'create_file_writer', lambda place: tensorflow.summary.create_noop_writer()
  )
  with bucket.bucket(tmp_path):
    for begin in (0, 1):
      lines = writer.Writer('gs://bucket/run', begin)
      for step in (begin + 1, begin + 2):
        lines.write(step, {'loss': float(step + begin)})
      lines.close()
    assert [(line['step'], line['loss']) for line in writer.read('gs://bucket/run')] == [
      (1, 1.0),
      (2, 3.0),
      (3, 4.0),
    ]
