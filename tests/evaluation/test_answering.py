import dataclasses
import json

import numpy as np
import pytest
from etils import epath
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.evaluation import answering, by_model, predictions
from sphinx_jax.evaluation.benchmarks.benchmark import open_benchmark
from sphinx_jax.generate import load
from tests.checkpoint import bucket
from tests.evaluation import questions
from tests.generate import small
from tests.models import idefics2_golden


@pytest.fixture
def root(tmp_path):
  return questions.write(tmp_path / 'root')


def opened(root, **settings):
  return open_benchmark('colors', questions.SETTINGS | settings, root)


def ask(root, folder, model, checkpoint='a', batch_size=1, **settings):
  benchmark = opened(root, **settings)
  claimed = predictions.claim(folder, checkpoint, [benchmark])
  answering.answer(by_model.ByModel(model, batch_size), benchmark, claimed)
  return (folder / 'colors.jsonl').read_text()


def test_every_question_gets_a_line_with_its_id_prompt_answer_and_truth(root, tmp_path):
  lines = [
    json.loads(line) for line in ask(root, tmp_path / 'out', questions.Painter()).splitlines()
  ]
  assert [line['id'] for line in lines] == [question.id for question in opened(root).questions]
  assert all(line['answer'] == line['gt_answers'] for line in lines)
  assert lines[4]['prompt'] == 'What is the color? Say it.\nAnswer shortly.'


@pytest.mark.parametrize('processes', [(0,), (0, 1, 5)])
def test_an_interrupted_run_resumes_and_writes_the_file_of_an_uninterrupted_one(
  root, tmp_path, processes
):
  """Also from the files of another number of processes, and with a last line that was cut off."""
  whole = ask(root, tmp_path / 'whole', questions.Painter())
  with pytest.raises(KeyboardInterrupt):
    ask(root, tmp_path / 'out', questions.Painter(calls=2))
  part = tmp_path / 'out' / 'colors.0.jsonl'
  lines = part.read_text().splitlines(keepends=True)
  assert len(lines) == 8
  for n, process in enumerate(processes):
    (tmp_path / 'out' / f'colors.{process}.jsonl').write_text(
      ''.join(lines[n :: len(processes)])[:-7]
    )
  again = questions.Painter()
  assert ask(root, tmp_path / 'out', again) == whole
  assert len(again.prompts) == 2 + len(processes)
  assert {file.name for file in (tmp_path / 'out').iterdir()} == {'run.json', 'colors.jsonl'}
  assert ask(root, tmp_path / 'out', again) == whole and len(again.prompts) == 2 + len(processes)


def test_answers_can_be_written_to_a_bucket(root, tmp_path):
  whole = ask(root, tmp_path / 'whole', questions.Painter())
  (tmp_path / 'bucket').mkdir()
  with bucket.bucket(tmp_path):
    with pytest.raises(KeyboardInterrupt):
      ask(root, epath.Path('gs://bucket/out'), questions.Painter(calls=1))
    again = questions.Painter()
    assert ask(root, epath.Path('gs://bucket/out'), again) == whole and len(again.prompts) == 6
  assert {file.name for file in (tmp_path / 'bucket' / 'out').iterdir()} == {
    'run.json',
    'colors.jsonl',
  }


def test_the_prefix_begins_the_answer(root, tmp_path):
  painter = questions.Painter()
  ask(root, tmp_path / 'out', painter, prefix=' The answer is')
  assert painter.prompts[0].endswith(
    'Human: What is the color?\nAnswer shortly.\n### Assistant: The answer is'
  )


def test_a_question_that_cannot_be_asked_is_a_wrong_answer_with_its_reason(root, tmp_path, caplog):
  (root / 'data' / '0.png').unlink()
  (root / 'data' / '3.png').write_bytes((root / 'data' / '3.png').read_bytes()[:40])
  rows = json.loads((root / 'annotations' / 'colors.json').read_text())
  rows[5]['question'] = 'Long? ' * 300
  (root / 'annotations' / 'colors.json').write_text(json.dumps(rows))
  with caplog.at_level('WARNING', 'sphinx_jax'):
    lines = [
      json.loads(line) for line in ask(root, tmp_path / 'out', questions.Painter()).splitlines()
    ]
  skipped = {line['id']: (line['answer'], line['skipped']) for line in lines if 'skipped' in line}
  assert skipped == {
    '0': ('', 'missing image'),
    '3': ('', 'unreadable image'),
    '5': ('', 'prompt too long'),
  }
  assert [line['answer'] for line in lines[6:]] == [
    'blue',
    'red',
    'blue',
    'red',
  ] and 'skipped 3' in caplog.text


def test_skipped_questions_are_asked_again_at_the_next_start(root, tmp_path):
  whole = ask(root, tmp_path / 'whole', questions.Painter())
  names = [root / 'data' / f'{i}.png' for i in (0, 3, 7)]
  images = [name.read_bytes() for name in names]
  for name in names:
    name.unlink()
  with pytest.raises(KeyboardInterrupt):  # The files of processes have skipped questions too.
    ask(root, tmp_path / 'out', questions.Painter(calls=2))
  assert ask(root, tmp_path / 'out', questions.Painter()) != whole
  # All that are asked again are unusable again, which is few of the benchmark.
  assert ask(root, tmp_path / 'out', questions.Painter()).count('missing image') == 3
  for name, image in zip(names, images):
    name.write_bytes(image)
  again = questions.Painter()
  assert ask(root, tmp_path / 'out', again) == whole and len(again.prompts) == 3
  assert {file.name for file in (tmp_path / 'out').iterdir()} == {'run.json', 'colors.jsonl'}


def test_a_root_without_the_images_is_an_error(root, tmp_path):
  for file in (root / 'data').iterdir():
    file.unlink()
  with pytest.raises(errors.SphinxError, match="'colors': missing image"):
    ask(root, tmp_path / 'out', questions.Painter())
  assert not (tmp_path / 'out' / 'colors.jsonl').exists()


def test_a_folder_of_another_checkpoint_or_prompt_is_an_error(root, tmp_path):
  ask(root, tmp_path / 'out', questions.Painter())
  with pytest.raises(errors.SphinxError, match="checkpoint: 'a' there, 'b' here.*another folder"):
    ask(root, tmp_path / 'out', questions.Painter(), checkpoint='b')
  with pytest.raises(errors.SphinxError, match='benchmarks.colors.max_new_tokens: 6 there, 7 here'):
    ask(root, tmp_path / 'out', questions.Painter(), max_new_tokens=7)
  with pytest.raises(errors.SphinxError, match='an answer to .*Answer shortly'):
    ask(root, tmp_path / 'out', questions.Painter(), prompt='{}')


def test_a_real_model_answers_the_same_in_batches_of_any_size(root, tmp_path):
  texts = [ask(root, tmp_path / str(size), small.model(), batch_size=size) for size in (1, 4, 8)]
  assert texts[0] == texts[1] == texts[2]
  lines = [json.loads(line) for line in texts[0].splitlines()]
  red = np.full((8, 12, 3), questions.COLORS['red'], np.uint8)
  expected = small.model().answers([[(lines[1]['prompt'], None)]], [red], max_new_tokens=6)
  assert lines[1]['answer'] == expected[0]
  assert len({line['answer'] for line in lines}) > 1


def test_questions_about_one_image_share_its_array(root, tmp_path):
  rows = json.loads((root / 'annotations' / 'colors.json').read_text())
  for row in rows:
    row['image_path'] = 'data/1.png'
  (root / 'annotations' / 'colors.json').write_text(json.dumps(rows))
  painter = questions.Painter()
  ask(root, tmp_path / 'out', painter, batch_size=4)
  assert len(painter.images) == 10 and len({id(image) for image in painter.images}) == 1


def test_transparent_pixels_are_shown_as_in_training(root, tmp_path):
  for i in range(10):
    Image.new('RGBA', (8, 12), (9, 9, 9, 0)).save(root / 'data' / f'{i}.png')
  for alpha, shade in (('drop', 9), ('white', 255)):
    model = questions.Painter()
    model.alpha = alpha
    ask(root, tmp_path / alpha, model)
    assert all(image[8, 8].tolist() == [shade] * 3 for image in model.images)


def test_a_model_of_another_family_is_asked_with_the_prompts_of_its_dialogs(root, tmp_path):
  """Answers are those of `chat`: up to the end of the turn, without its token and spaces."""
  folder = idefics2_golden.FOLDER / 'model'
  settings = dict(styles={'idefics2': {'prompt': '{}\nBriefly.'}}, max_new_tokens=3)
  style = load.template(folder).style
  benchmark = open_benchmark('colors', questions.SETTINGS | settings, root, style)
  benchmark = dataclasses.replace(benchmark, questions=benchmark.questions[:3])
  model = load.load_model(folder)
  claimed = predictions.claim(tmp_path / 'out', 'a', [benchmark])
  answering.answer(by_model.ByModel(model, batch_size=4), benchmark, claimed)
  lines = [
    json.loads(line) for line in (tmp_path / 'out' / 'colors.jsonl').read_text().splitlines()
  ]
  assert [line['prompt'] for line in lines] == [
    f'What is the color?{" Say it." * i}\nBriefly.' for i in range(3)
  ]
  pixels = [np.asarray(Image.open(question.images[0])) for question in benchmark.questions]
  dialogs = [[(line['prompt'], None)] for line in lines]
  assert [line['answer'] for line in lines] == model.answers(dialogs, pixels, max_new_tokens=3)
  for line in lines:
    assert line['answer'] == line['answer'].strip()
    assert not any(special in line['answer'] for special in model.tokenizer.specials)
