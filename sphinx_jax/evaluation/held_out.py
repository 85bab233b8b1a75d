"""Scores a model on held-out tasks by generation, and its blind floor: the same weights shown the mean image instead.

Everything lands in one folder: `run.json` (what the folder belongs to), `<task>.final.jsonl` and `<task>.blind.jsonl`
(one line a question), `images/` (the first pictures of every task, for the report) and `results.json`. A finished file
is recognised and not computed again, so an interrupted evaluation goes on where it was.
"""

import io
import json

import numpy as np
from etils import epath
from PIL import Image

from sphinx_jax import datasets as sources_lib
from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.core.progress import log, Progress
from sphinx_jax.data import images, record
from sphinx_jax.evaluation import bootstrap
from sphinx_jax.tasks import TASKS

KINDS = ('final', 'blind')
_CHUNK = 512  # questions whose pictures are in memory at once
_SAMPLES = 8  # pictures a task kept for the report


def evaluate(
  model, sources, examples, mean_image, folder, run='', batch_size=128, params=None
) -> dict:
  """Generates, scores and writes answers for every task, with and without the picture.

  Args:
    model: `generate.model.Model`.
    sources: {name: `data.record.Source`} of held-out records; a record's own task says how it is scored.
    examples: most questions a name; every turn of a record is one question, asked after the record's true turns before it.
    mean_image: uint8[Y, X, 3], what the blind model sees.
    folder: where everything is written.
    run: any text that stands for the weights; a folder of another run is refused.
    batch_size, params: as in `Model.complete`.

  Returns:
    {name: {'metric': str, 'blind', 'blind_low', 'blind_high', 'final', 'low', 'high': float, 'examples': int}};
    low and high bound the 95 % bootstrap interval, drawn over records. Also written to `results.json`.

  Raises:
    SphinxError: the folder belongs to another run, or a source has no usable example.
  """
  folder = _claim(
    epath.Path(folder),
    {'run': run, 'examples': examples, 'sources': {n: len(s) for n, s in sources.items()}},
  )
  results = {}
  for name, source in sources.items():
    files = {kind: folder / f'{name}.{kind}.jsonl' for kind in KINDS}
    if not all(file.exists() for file in files.values()):
      questions = _questions(name, source, examples)
      for kind, file in files.items():
        if not file.exists():
          blind_image = mean_image if kind == 'blind' else None
          _answer(model, questions, blind_image, name, file, batch_size, params)
    results[name] = summary(*(read(files[kind]) for kind in KINDS))
    log.info('%s', line(name, results[name]))
  write_json(folder / 'results.json', results)
  return results


def open_split(config, names, split, data_dir=None) -> dict:
  """{name: source} of the records of some tasks of a run's mixture, one question a record.

  Args:
    config: of the run; what `config.validation` has under the task's name is held out, or else a split of the source.
    names: of entries of its mixture.
    split: 'train' is what the run trains on.
    data_dir: None: the config's.

  Raises:
    SphinxError: a task that the mixture does not have; one that nothing is held out of.
  """
  return {
    name: sources_lib.open_source(
      {**_entry(config, name, split), 'max_turns': 1}, data_dir or config.data_dir
    )
    for name in names
  }


def scored(config) -> list[str]:
  """The entries of a run's mixture whose task has a metric; text and dialogs have none."""
  return [
    name
    for name, entry in config.mixture.items()
    if TASKS[entry.get('task', 'dialog')].metric != 'none'
  ]


def _entry(config, name, split) -> dict:
  if name not in config.mixture:
    raise errors.unknown(f"task of '{config.name}'", name, config.mixture)
  entry = config.mixture[name].to_dict()
  if split == 'train':
    return entry
  if name in config.validation:
    return config.validation[name].to_dict()
  if (
    'split' not in entry or entry['source'] == 'built'
  ):  # What is held out of those is another file or folder.
    raise errors.make(
      f"task '{name}'",
      f"a source without a split '{split}'",
      'records that are not trained on',
      f'name them in config.validation.{name}',
    )
  return {**entry, 'split': split}


def mean_image(sources, size, examples=64) -> np.ndarray:
  """The mean picture of the first records of every source, uint8[size, size, 3]."""
  total, count = np.zeros((size, size, 3)), 0
  for source in sources.values():
    for i in range(min(examples, len(source))):
      try:
        pixels = source[i].image
        if pixels is not None:
          total += images.padded_resize(images.decode(pixels), size)
          count += 1
      except record.BadExample:
        continue  # counted and named where the example is asked about
  if not count:
    raise errors.make(
      'mean image', 'no picture', 'at least one readable picture', 'check the sources'
    )
  return np.round(total / count).astype(np.uint8)


def summary(final, blind) -> dict:
  """The result of one task from the lines of its two prediction files."""
  numbers = [_by_record(lines) for lines in (final, blind)]
  (low, high), (blind_low, blind_high) = (bootstrap.interval(*pair) for pair in numbers)
  value, blind_value = (bootstrap.ratio(*pair) for pair in numbers)
  return {
    'metric': TASKS[final[0]['task']].metric,
    'blind': blind_value,
    'blind_low': blind_low,
    'blind_high': blind_high,
    'final': value,
    'low': low,
    'high': high,
    'examples': len(final),
  }


def line(name, result) -> str:
  """One result as a line of text."""
  interval = f'[{result["low"]:.3f}, {result["high"]:.3f}]'
  return (
    f'{name:18s} {result["metric"]:28s} {result["final"]:.3f} {interval}, blind {result["blind"]:.3f}, '
    f'{result["examples"]} examples'
  )


def read(file) -> list[dict]:
  """The lines of a predictions file."""
  return [json.loads(text) for text in epath.Path(file).read_text().splitlines()]


def write_json(file, value) -> None:
  """Writes JSON whole or not at all."""
  config_lib.write_whole(file, json.dumps(value, indent=2))


def _claim(folder, run):
  file = folder / 'run.json'
  if file.exists() and json.loads(file.read_text()) != run:
    raise errors.make(
      f"evaluation folder '{folder}'",
      f'results of {file.read_text()}',
      f'{json.dumps(run)}',
      'give another folder or remove this one',
    )
  (folder / 'images').mkdir(parents=True, exist_ok=True)
  write_json(file, run)
  return folder


def _questions(name, source, examples):
  """[(record, turn index), ...] of the first records that are usable."""
  questions = []
  for i in range(len(source)):
    if len(questions) >= examples:
      break
    try:
      item = source[i]
      if item.image is not None:
        images.decode(item.image)
      questions += [(item, turn) for turn in range(len(item.turns))]
    except record.BadExample as error:
      log.warning('%s: example %d skipped: %s', name, i, error)
  if not questions:
    raise errors.make(
      f"task '{name}'",
      f'no usable example among {len(source)}',
      'at least one',
      'check its data or leave the task out',
    )
  return questions[:examples]


def _answer(model, questions, blind_image, name, file, batch_size, params):
  """Asks all questions and writes their scored lines; the file appears when it is complete."""
  kind = 'final' if blind_image is None else 'blind'
  longest = max(len(model.tokenizer.encode(item.turns[t][1])) for item, t in questions)
  limit = longest + longest // 2 + 8  # half again as long as the longest true answer
  temporary = file.with_suffix('.tmp')
  with (
    temporary.open('w') as out,
    Progress(total=len(questions), what=f'{name} ({kind})', unit='answers') as bar,
  ):
    for begin in range(0, len(questions), _CHUNK):
      chunk = questions[begin : begin + _CHUNK]
      pixels = {
        id(item): None if item.image is None else images.decode(item.image) for item, _ in chunk
      }
      shown = [pixels[id(item)] for item, _ in chunk]
      if blind_image is not None:
        shown = [None if picture is None else blind_image for picture in shown]
      texts = model.answers(
        [[*item.turns[:t], (item.turns[t][0], None)] for item, t in chunk],
        shown,
        max_new_tokens=limit,
        expected=[len(item.turns[t][1]) for item, t in chunk],
        batch_size=batch_size,
        params=params,
      )
      for n, ((item, turn), text) in enumerate(zip(chunk, texts), begin):
        scored = _score(item, turn, text)
        if kind == 'final' and n < _SAMPLES and item.image is not None:
          scored['image'] = f'images/{name}-{n}.png'
          Image.open(io.BytesIO(item.image)).convert('RGB').save(file.parent / scored['image'])
        out.write(json.dumps(scored) + '\n')
      bar.update(len(chunk))
  temporary.replace(file)


def _score(item, turn, text):
  instruction, answer = item.turns[turn]
  numerator, denominator = TASKS[item.task].score(text, item.truth[turn])
  return {
    'id': item.id,
    'task': item.task,
    'instruction': instruction,
    'prediction': text,
    'answer': answer,
    'truth': item.truth[turn],
    'numerator': numerator,
    'denominator': denominator,
  }


def _by_record(lines):
  """Numerators and denominators summed over the questions of each record."""
  sums = {}
  for entry in lines:
    pair = sums.setdefault(entry['id'], [0.0, 0.0])
    pair[0] += entry['numerator']
    pair[1] += entry['denominator']
  return tuple(np.array(list(sums.values())).T)
