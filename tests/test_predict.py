"""`python -m sphinx_jax.predict` from end to end, with tiny models and small images."""

import json
import pathlib
import resource
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
from PIL import ExifTags, Image

from sphinx_jax.generate import load
from sphinx_jax.generate.model import Model
from tests import command, xla
from tests.checkpoint import bucket
from tests.generate import small
from tests.models import idefics2_golden

ROOT = pathlib.Path(__file__).parent.parent
PROMPT = 'What is the color?'
COUNT = 12


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
  return small.save(tmp_path_factory.mktemp('run'))


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
  """Images of several shapes in two folders with equal names, and a broken one."""
  folder = tmp_path_factory.mktemp('photos')
  for number, pixels in enumerate(small.images(COUNT)):
    place = folder / ('кот' if number % 2 else 'b') / f'{number // 2}.png'
    place.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels[: 8 + number % 3, : 16 - number % 5]).save(place)
  (folder / 'c.jpg').write_bytes(b'\xff\xd8\xff broken')
  return folder


def flags(checkpoint, output, source, *more, prompt=PROMPT):
  asked = [] if prompt is None else [f'--prompt={prompt}']
  return [
    f'--checkpoint={checkpoint}',
    f'--input={source}',
    f'--output={output}',
    '--max_new_tokens=8',
    *asked,
    *more,
  ]


def predict(capsys, *arguments):
  """The printed text and the log of a call that succeeds."""
  code, printed, log = command.run(capsys, 'predict', *arguments)
  assert code == 0, log
  return printed, log


def lines(file):
  return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture(scope='module')
def answered(checkpoint, photos, tmp_path_factory):
  """The output of one call for the photos, made by a process as users start it."""
  output = tmp_path_factory.mktemp('answered') / 'out.jsonl'
  done = subprocess.run(
    [sys.executable, '-m', 'sphinx_jax.predict', *flags(checkpoint, output, photos)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    env=xla.environment(),
  )
  assert done.returncode == 0, done.stderr
  assert f'{output}: {COUNT} answers, 1 errors' in done.stdout
  return output


def test_every_image_has_a_line_and_a_broken_one_has_its_error(answered, photos):
  found = lines(answered)
  names = [f'b/{i}.png' for i in range(6)] + ['c.jpg'] + [f'кот/{i}.png' for i in range(6)]
  assert [line['image'] for line in found] == names
  for line in found:
    if line['image'] == 'c.jpg':
      assert line['answer'] == '' and 'unreadable image: 10 bytes of JPEG' in line['error']
      continue
    pixels = np.asarray(Image.open(photos / line['image']))
    (answer,) = small.model().answers([[(PROMPT, None)]], [pixels], max_new_tokens=8)
    assert line == {'image': line['image'], 'prompt': PROMPT, 'answer': answer}
  assert len({line['answer'] for line in found}) > 2
  assert {file.name for file in answered.parent.iterdir()} == {'out.jsonl', 'out.jsonl.run'}


def test_a_killed_run_resumes_inside_a_line(answered, checkpoint, photos, tmp_path, capsys):
  output = tmp_path / 'out.jsonl'
  folder = tmp_path / 'out.jsonl.run'
  shutil.copytree(f'{answered}.run', folder)
  whole = (folder / 'answers.jsonl').read_bytes()
  (folder / 'answers.jsonl').unlink()
  (folder / 'answers.0.jsonl').write_bytes(whole[: len(whole) // 2])
  predict(capsys, *flags(checkpoint, output, photos))
  assert output.read_bytes() == answered.read_bytes()
  assert (folder / 'answers.jsonl').read_bytes() == whole


def test_a_full_disk_is_one_line_and_the_next_call_goes_on(
  checkpoint, photos, tmp_path, capsys, monkeypatch
):
  monkeypatch.setattr(Model, 'complete', lambda self, prompts, *_, **__: ['x' * 50] * len(prompts))
  call = flags(checkpoint, tmp_path / 'out.jsonl', photos, '--batch_size=1')  # 4 items a call.
  limit = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limit[1]))
  try:
    message = command.error(capsys, 'predict', *call)
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
  assert 'out.jsonl.run' in message and 'file too large' in message
  assert not (tmp_path / 'out.jsonl').exists()
  assert (tmp_path / 'out.jsonl.run' / 'answers.0.jsonl').stat().st_size == 1500
  predict(capsys, *call)
  assert [line['answer'] for line in lines(tmp_path / 'out.jsonl')].count('x' * 50) == COUNT


def test_everything_may_be_written_to_a_bucket(checkpoint, photos, tmp_path, capsys, monkeypatch):
  text = 'cat [0.25, 0.25, 0.75, 0.75]'
  monkeypatch.setattr(Model, 'complete', lambda self, prompts, *_, **__: [text] * len(prompts))
  (tmp_path / 'bucket').mkdir()
  places = ['--coco=gs://bucket/coco.json', '--draw=gs://bucket/drawn', '--schema=boxes']
  with bucket.bucket(tmp_path):
    for _ in range(2):
      predict(capsys, *flags(checkpoint, 'gs://bucket/out.jsonl', photos, *places))
  assert len(lines(tmp_path / 'bucket' / 'out.jsonl')) == COUNT + 1
  coco = json.loads((tmp_path / 'bucket' / 'coco.json').read_text())
  assert len(coco['annotations']) == COUNT
  assert len(list((tmp_path / 'bucket' / 'drawn').rglob('*.png.jpg'))) == COUNT


@pytest.fixture
def asked(monkeypatch):
  """The number of prompts of every call of a model."""
  counts, complete = [], Model.complete

  def counted(self, prompts, *arguments, **options):
    counts.append(len(prompts))
    return complete(self, prompts, *arguments, **options)

  monkeypatch.setattr(Model, 'complete', counted)
  return counts


def test_only_what_is_new_or_failed_is_asked_later(checkpoint, photos, tmp_path, capsys, asked):
  folder, output = tmp_path / 'in', tmp_path / 'out.jsonl'
  shutil.copytree(photos, folder)
  call = flags(checkpoint, output, folder)
  predict(capsys, *call, '--limit=3')
  assert sum(asked) == 3 == len(lines(output))
  predict(capsys, *call, '--limit=5')
  assert sum(asked) == 5 == len(lines(output))
  printed, log = predict(capsys, *call)
  assert sum(asked) == COUNT and '12 answers, 1 errors' in printed and 'skipped c.jpg' in log
  shutil.copy(folder / 'b' / '1.png', folder / 'a new one.png')
  shutil.copy(folder / 'b' / '2.png', folder / 'c.jpg')  # It is mended.
  printed, _ = predict(capsys, *call)
  assert sum(asked) == COUNT + 2 and '14 answers, 0 errors' in printed
  by_image = {line['image']: line['answer'] for line in lines(output)}
  assert next(iter(by_image)) == 'a new one.png'
  assert by_image['a new one.png'] == by_image['b/1.png']
  assert by_image['c.jpg'] == by_image['b/2.png']
  predict(capsys, *call, '--limit=2')
  assert len(lines(output)) == 2 and sum(asked) == COUNT + 2
  predict(capsys, *call)
  assert len(lines(output)) == 14 and sum(asked) == COUNT + 2


def test_answers_of_two_runs_are_not_mixed(answered, checkpoint, photos, tmp_path, capsys):
  shutil.copytree(answered.parent, tmp_path / 'x')
  output = tmp_path / 'x' / 'out.jsonl'
  before = output.read_bytes()

  def refused(*more, source=photos, base=checkpoint, **options):
    return command.error(capsys, 'predict', *flags(base, output, source, *more, **options))

  expected = "prompt: 'What is the color?' there, 'Why?' here"
  assert expected in refused(prompt='Why?')
  assert 'temperature: 0.0 there, 0.5 here' in refused('--temperature=0.5')
  assert 'max_new_tokens: 8 there, 9 here' in refused('--max_new_tokens=9')
  assert 'input: ' in refused(source=photos / 'b')
  other = small.save(tmp_path / 'other', name='other')
  message = refused(base=other)
  assert 'checkpoint: ' in message and f"remove it and '{output}.run'" in message
  assert output.read_bytes() == before
  shutil.rmtree(f'{output}.run')
  assert f"a file without '{output}.run'" in refused()
  assert output.read_bytes() == before and not pathlib.Path(f'{output}.run').exists()


def test_lines_of_a_file_are_asked_with_their_own_questions(checkpoint, tmp_path, capsys):
  pixels = small.images(2)
  for name, image in zip('ab', pixels):
    Image.fromarray(image).save(tmp_path / f'{name}.png')
  turns = [{'from': 'human', 'value': 'red'}, {'from': 'gpt', 'value': 'blue'}]
  last = {'from': 'human', 'value': 'one'}
  items = [
    {'id': 5, 'image': 'a.png', 'prompt': 'What?'},
    {'question_id': 'x', 'image': 'b.png', 'conversations': [*turns, last], 'other': 1},
    'no json',
    {'id': 6, 'image': 'gone.png'},
    {'images': ['a.png', 'b.png'], 'prompt': '<image> or <image>?'},
    {'prompt': 'two three'},
    {'image': 'a.png', 'prompt': 'Human ' * 300},
  ]
  text = ''.join(f'{item if isinstance(item, str) else json.dumps(item)}\n' for item in items)
  (tmp_path / 'in.jsonl').write_text(text)
  call = flags(checkpoint, tmp_path / 'out.jsonl', tmp_path / 'in.jsonl')
  printed, _ = predict(capsys, *call, '--schema=boxes')
  assert '2 answers, 5 errors' in printed  # Boxes need one image.
  predict(capsys, *call)
  found = lines(tmp_path / 'out.jsonl')
  answers = small.model().answers(
    [
      [('What?', None)],
      [('red', 'blue'), ('one', None)],
      [('<image> or <image>?', None)],
      [('two three', None)],
    ],
    [pixels[0], pixels[1], pixels, None],
    max_new_tokens=8,
  )
  assert [found[i] for i in (0, 1, 4, 5)] == [
    {'image': 'a.png', 'id': 5, 'prompt': 'What?', 'answer': answers[0]},
    {'image': 'b.png', 'question_id': 'x', 'prompt': 'one', 'answer': answers[1]},
    {'images': ['a.png', 'b.png'], 'prompt': '<image> or <image>?', 'answer': answers[2]},
    {'prompt': 'two three', 'answer': answers[3]},
  ]
  broken = {i: found[i].pop('error') for i in (2, 3, 6)}
  assert 'not json' in broken[2] and 'in.jsonl:3' in broken[2]
  assert 'missing image' in broken[3] and 'in.jsonl:4' in broken[3] and 'gone.png' in broken[3]
  assert broken[6].startswith('prompt too long')
  assert found[3] == {'id': 6, 'image': 'gone.png', 'prompt': PROMPT, 'answer': ''}


def test_a_folder_is_labelled(checkpoint, tmp_path, capsys, monkeypatch):
  """Answers stay when labels, drawings and the COCO file are made anew."""
  folder = tmp_path / 'in'
  for name, size in {'x/a.png': (40, 20), 'y/a.png': (20, 40), 'y/b.png': (8, 8)}.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    Image.new('RGB', size).save(folder / name)
  texts = ['cat [0.50, 0.25, 0.75, 0.75]', 'nose [0.50, 0.50]', 'nothing']
  monkeypatch.setattr(Model, 'complete', lambda self, prompts, *_, **__: texts[: len(prompts)])
  call = flags(checkpoint, tmp_path / 'out.jsonl', folder)
  places = [f'--coco={tmp_path / "coco.json"}', f'--draw={folder / "drawn"}']
  _, log = predict(capsys, *call, '--schema=boxes', *places)
  assert '2 answers without boxes' in log
  found = lines(tmp_path / 'out.jsonl')
  assert [line['boxes'] for line in found] == [
    [{'label': 'cat', 'box': [20.0, 0.0, 30.0, 20.0]}],
    [],
    [],
  ]
  assert [(line['width'], line['height']) for line in found] == [(40, 20), (20, 40), (8, 8)]
  coco = json.loads((tmp_path / 'coco.json').read_text())
  assert [image['file_name'] for image in coco['images']] == ['x/a.png', 'y/a.png', 'y/b.png']
  assert [annotation['bbox'] for annotation in coco['annotations']] == [[20, 0, 10, 20]]
  drawn = sorted(str(file.relative_to(folder / 'drawn')) for file in folder.rglob('*.jpg'))
  assert drawn == ['x/a.png.jpg', 'y/a.png.jpg']
  texts[:] = ['asked again'] * 3
  predict(capsys, *call, '--schema=points', *places[1:])
  assert [line['points'] for line in lines(tmp_path / 'out.jsonl')] == [
    [],
    [{'label': 'nose', 'point': [10.0, 20.0]}],
    [],
  ]
  for more, message in (
    (['--coco=x'], '--coco without --schema=boxes'),
    (['--schema=boxes', f'--coco={tmp_path / "out.jsonl"}'], '--coco: got the file of --output'),
    ([f'--draw={folder}'], 'got the folder of the input'),
    (['--schema=boxes', f'--coco={checkpoint / "config.json"}'], 'config.json'),
  ):
    (checkpoint / 'config.json').write_text('{}')
    assert message in command.error(capsys, 'predict', *call, *more)
  message = command.error(capsys, 'predict', *call, *places[1:], '--boxes=pixels')
  assert "drawn': got answers of another run (boxes: 'square' there, 'pixels' here)" in message
  other = flags(checkpoint, tmp_path / 'other.jsonl', folder, *places[1:], prompt='Why?')
  assert 'drawn' in command.error(capsys, 'predict', *other)


@pytest.mark.parametrize(
  'family, box', [('sphinx', [0.0, 10.0, 40.0, 40.0]), ('idefics2', [30.0, 0.0, 60.0, 40.0])]
)
def test_boxes_of_a_turned_photo_are_in_its_stored_pixels(
  family, box, checkpoint, tmp_path, capsys, monkeypatch
):
  """The right half of the stored pixels is the upper half for a family that sees it upright."""
  (tmp_path / 'in').mkdir()
  exif = Image.Exif()
  exif[ExifTags.Base.Orientation] = 8  # A quarter counterclockwise.
  Image.new('RGB', (60, 40)).save(tmp_path / 'in' / 'photo.jpg', exif=exif)
  texts = {'sphinx': '[0.0, 0.3333, 0.6667, 0.95]', 'idefics2': '[0.0, 0.0, 1.0, 0.5]'}
  monkeypatch.setattr(Model, 'complete', lambda *_, **__: [texts[family]])
  model = idefics2_golden.FOLDER / 'model' if family == 'idefics2' else checkpoint
  call = flags(model, tmp_path / 'out.jsonl', tmp_path / 'in', f'--draw={tmp_path / "drawn"}')
  _, log = predict(capsys, *call, '--schema=boxes')
  (line,) = lines(tmp_path / 'out.jsonl')
  assert (line['width'], line['height']) == (60, 40)
  assert line['boxes'][0]['box'] == pytest.approx(box, abs=0.01)
  assert ('1 images with an EXIF orientation' in log) == (family == 'sphinx')
  drawn = Image.open(tmp_path / 'drawn' / 'photo.jpg.jpg').size
  assert (drawn[0] < drawn[1]) == (family == 'idefics2')  # As the model sees it.


NEAR_TIE = 1e-4  # Of the logits of the two likeliest tokens.


def smallest_margin(model, pixels, count):
  """The smallest difference of the two largest logits at the steps of a greedy answer."""
  encoded = model.prompt_of([(PROMPT, None)], 1)
  ids, vocab = list(encoded.ids), model.tokenizer.vocab_size
  if model.template.marks_images:
    for at in reversed(encoded.images_at):
      ids[at:at] = [model.config.image_token] * model.visual_tokens
  forbidden = [model.tokenizer.specials[token] for token in model.template.image_tokens]
  margins = []
  for _ in range(count):
    padded = np.array([ids + [0] * (count - len(margins))], np.int32)  # One compiled shape.
    logits = np.array(model.logits(padded, [pixels]))[0, len(ids) - 1, :vocab]
    logits[forbidden] = -np.inf
    second, first = np.sort(logits)[-2:]
    margins.append(first - second)
    ids.append(int(np.argmax(logits)))
  return min(margins)


def count_near_ties(model, photos, one, other):
  """The number of answers that differ between two outputs, each of them after a near tie."""
  assert [line['image'] for line in one] == [line['image'] for line in other]
  count = 0
  for line, another in zip(one, other):
    if line['answer'] != another['answer']:
      pixels = np.asarray(Image.open(photos / line['image']))
      assert smallest_margin(model, pixels, 8) < NEAR_TIE, (line, another)
      count += 1
  return count


@pytest.mark.parametrize('family', ['sphinx', 'idefics2'])
def test_greedy_answers_alone_and_in_batches_are_equal_but_after_near_ties(
  family, checkpoint, photos, tmp_path, capsys
):
  model = idefics2_golden.FOLDER / 'model' if family == 'idefics2' else checkpoint
  for size in (1, 8):
    output = tmp_path / f'{size}.jsonl'
    predict(capsys, *flags(model, output, photos, f'--batch_size={size}'))
  alone, together = (lines(tmp_path / f'{size}.jsonl') for size in (1, 8))
  assert len({line['answer'] for line in alone}) > 2
  assert count_near_ties(load.load_model(model), photos, alone, together) <= 1


def test_a_margin_that_is_no_near_tie_is_found(photos):
  """The check of the test above finds an answer that differs without a near tie."""
  line = {'image': 'b/0.png', 'answer': 'a'}
  with pytest.raises(AssertionError, match="'answer': 'b'"):
    count_near_ties(small.model(), photos, [line], [line | {'answer': 'b'}])


def test_sampled_answers_depend_on_their_seed_alone(answered, checkpoint, photos, tmp_path, capsys):
  found = {}
  for name, *more in (
    ('alone', '--batch_size=1'),
    ('together', '--batch_size=8'),
    ('in two calls', '--limit=5'),
    ('in two calls',),
    ('another seed', '--seed=1'),
  ):
    output = tmp_path / f'{name}.jsonl'
    predict(capsys, *flags(checkpoint, output, photos, '--temperature=0.5', *more))
    found[name] = [line['answer'] for line in lines(output)]
  assert found['alone'] == found['together'] == found['in two calls'] != found['another seed']
  assert found['alone'] != [line['answer'] for line in lines(answered)]


@pytest.mark.parametrize('kind', ['adapter', 'int8'])
def test_adapters_and_quantized_weights_answer_too(
  kind, answered, checkpoint, photos, tmp_path, capsys
):
  more, adapter = [], None
  base = checkpoint
  if kind == 'adapter':
    adapter = small.save_adapter(tmp_path / 'adapter', checkpoint)
    more = [f'--adapter={adapter}']
  else:
    base = tmp_path / 'quantized'
    assert not command.run(
      capsys, 'convert', f'--source={checkpoint}', f'--output={base}', '--quantize=int8'
    )[0]
  call = flags(base, tmp_path / 'out.jsonl', photos, '--limit=4')
  predict(capsys, *call, *more)
  found = lines(tmp_path / 'out.jsonl')
  pixels = [np.asarray(Image.open(photos / line['image'])) for line in found]
  model = load.load_model(base, adapter=adapter)
  assert [line['answer'] for line in found] == model.answers(
    [[(PROMPT, None)]] * 4, pixels, max_new_tokens=8
  )
  assert [line['answer'] for line in found] != [line['answer'] for line in lines(answered)[:4]]
  if kind == 'adapter':
    assert 'answers of another run' in command.error(capsys, 'predict', *call)


def test_a_model_on_a_mesh_of_devices_gives_the_same_answers(
  answered, checkpoint, photos, tmp_path, capsys
):
  predict(capsys, *flags(checkpoint, tmp_path / 'x.jsonl', photos, '--mesh=fsdp'))
  one, other = lines(answered), lines(tmp_path / 'x.jsonl')
  assert count_near_ties(small.model(), photos, one, other) <= 1


def test_two_processes_share_the_images(answered, checkpoint, photos, tmp_path):
  with socket.socket() as free:
    free.bind(('127.0.0.1', 0))
    port = free.getsockname()[1]
  more = [f'--draw={tmp_path / "drawn"}']
  both = [
    subprocess.Popen(
      [sys.executable, '-m', 'sphinx_jax.predict']
      + flags(checkpoint, tmp_path / 'out.jsonl', photos, *more),
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      env=xla.environment()
      | {
        'JAX_COORDINATOR_ADDRESS': f'127.0.0.1:{port}',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': str(number),
        'SPHINX_JAX_COMMIT': 'a',
      },
    )
    for number in range(2)
  ]
  try:
    printed = [process.communicate(timeout=300)[0] for process in both]
  finally:
    for process in both:
      process.kill()
  assert [process.returncode for process in both] == [0, 0], printed
  assert f'{COUNT} answers, 1 errors' in printed[0] and 'answers, ' not in printed[1]
  assert (tmp_path / 'out.jsonl').read_bytes() == answered.read_bytes()
