import html.parser
import json
import re

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.core import errors
from sphinx_jax.report import recipe_page, study_page
from tests.report import texts

CURVE = [
  {'coefficient': c / 10, 'real': 2 - c / 20, 'synthetic': 1.2 + (c / 10) ** 2 / 2}
  for c in range(11)
]


def result(final, blind):
  return {
    'metric': 'accuracy',
    'blind': blind,
    'blind_low': blind - 0.05,
    'blind_high': blind + 0.05,
    'final': final,
    'low': round(final - 0.05, 3),
    'high': round(final + 0.05, 3),
    'examples': 6,
  }


def entry(task, n, prediction, answer, right):
  return {
    'id': f'{task}/{n}',
    'task': task,
    'instruction': f'Question <{n}> & more?',
    'prediction': prediction,
    'answer': answer,
    'truth': {},
    'numerator': float(right),
    'denominator': 1.0,
    'image': f'images/{task}-{n}.png',
  }


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  """A small finished recipe with its page: (arguments of write, workdir, html)."""
  work = tmp_path_factory.mktemp('work')
  evaluation = work / 'evaluate'
  (evaluation / 'images').mkdir(parents=True)
  tasks = {'vqa': ('red', 'red'), 'rec': ('[0.1, 0.1, 0.5, 0.5]', '[0.1, 0.1, 0.6, 0.6]')}
  for task, (prediction, answer) in tasks.items():
    lines = [entry(task, n, prediction, answer, n % 2) for n in range(2)]
    (evaluation / f'{task}.final.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines)
    )
    for n in range(2):
      Image.fromarray(np.full((8, 12, 3), 40 * n, np.uint8)).save(
        evaluation / 'images' / f'{task}-{n}.png'
      )
  (evaluation / 'results.json').write_text(
    json.dumps({'vqa': result(0.9, 0.3), 'rec': result(0.5, 0.45)})
  )
  log = work / 'metrics.jsonl'
  log.write_text(
    ''.join(
      json.dumps({'step': s, 'loss': 3 / s, 'loss/vqa': 2 / s, 'examples_per_second': 64.0}) + '\n'
      for s in (10, 20)
    )
    + '{"step": 30, "lo'
  )  # The last line was cut off by a kill.
  contrast = work / 'contrast.jsonl'
  contrast.write_text(
    ''.join(
      json.dumps({'step': s, 'loss': 4 / s, 'loss/clip': 4 / s, 'accuracy/clip': s / 40}) + '\n'
      for s in (1, 10)
    )
  )
  arguments = dict(
    evaluation=evaluation,
    metrics={'stage2': log},
    curve=CURVE,
    mixed=0.5,
    seconds={'data': 12.5, 'stage2': 100.0},
    peak_rss_bytes=3 * 2**30,
    config={'name': 'tiny <config>', 'steps': ['data', 'stage2']},
    targets={'vqa': 0.8, 'rec': 0.6},
    pretraining={'contrast': contrast},
  )
  file = recipe_page.write(work, **arguments)
  return arguments, work, file.read_text()


def test_metrics_json_has_exactly_its_documented_fields(finished):
  metrics = json.loads((finished[1] / 'metrics.json').read_text())
  assert list(metrics) == ['tasks', 'mix_curve', 'seconds', 'peak_rss_bytes']
  assert metrics['tasks']['vqa'] == {
    'metric': 'accuracy',
    'blind': 0.3,
    'final': 0.9,
    'low': 0.85,
    'high': 0.95,
    'examples': 6,
  }
  assert metrics['mix_curve'] == CURVE and metrics['seconds'] == {'data': 12.5, 'stage2': 100.0}
  assert metrics['peak_rss_bytes'] == 3 * 2**30


def test_the_page_needs_nothing_from_outside(finished):
  sources = re.findall(r'(?:src|href)="([^"]*)"', finished[2])
  assert sources and all(source.startswith(('data:image/png;base64,', '#')) for source in sources)
  assert 'url(' not in finished[2] and '<script' not in finished[2] and '@import' not in finished[2]


def test_the_page_shows_the_results_of_studies_that_there_are(finished, tmp_path, monkeypatch):
  mean = {
    'baseline': 0.5,
    'changed': 0.4,
    'difference': -0.1,
    'low': -0.15,
    'high': -0.05,
    'by_seed': [-0.12, -0.1, -0.08],
    'p_corrected': 0.02,
    'verdict': 'worse by 0.100',
  }
  pairs = [
    {'change': 'clip', 'baseline': 'all', 'mean': mean},
    {'change': 'dinov2', 'baseline': 'all', 'mean': None},
  ]
  study = {'title': 'Is it better?', 'command': 'python -m mine', 'seeds': 3}
  study['groups'] = {'evaluate': {'pairs': pairs}}
  (tmp_path / 'embeddings.json').write_text(json.dumps(study))
  monkeypatch.setattr(study_page, '_FINISHED', tmp_path)
  arguments = finished[0] | {'studies': ('embeddings', 'scales')}
  text = recipe_page.write(tmp_path, **arguments).read_text()
  for words in ('Is it better?', 'python -m mine', '-0.100</b> [-0.150, -0.050]', 'not finished'):
    assert words in text, words
  assert re.search(r'class="bad">worse by 0.100', text) and 'id="studies"' in text
  assert (tmp_path / 'report' / 'studies.png').exists()
  assert 'id="studies"' not in finished[2]


def test_every_link_of_the_page_has_a_target(finished):
  targets = set(re.findall(r'id="([^"]*)"', finished[2]))
  assert {link[1:] for link in re.findall(r'href="([^"]*)"', finished[2])} <= targets


def test_the_page_shows_scores_targets_and_samples(finished):
  text = finished[2]
  for words in (
    '0.900',
    '0.850 – 0.950',
    '≥ 0.80 reached',
    '≥ 0.60 missed',
    '3.00 GiB',
    '100.0',
    'loss against step',
    'tiny &lt;config&gt;',
    'Question &lt;0&gt; &amp; more?',
    '[0.1, 0.1, 0.6, 0.6]',
    'no worse than the better parent',
  ):
    assert words in text, words
  assert re.search(r'1 of 2</b>tasks beat', text)  # The intervals of rec overlap.


def test_the_page_shows_how_the_encoders_were_pretrained(finished):
  _, work, text = finished
  assert 'The encoders were pretrained first' in text and 'loss of pretraining against' in text
  row = re.search(r'<tr><td>contrast.*?</tr>', text).group()
  assert re.findall(r'>([^<>]+)<', row) == ['contrast', 'clip', '10', '4.000', '0.400', '0.250']
  assert (work / 'report' / 'pretraining.png').exists()


def test_a_page_without_pretraining_does_not_speak_of_it(finished, tmp_path):
  page = recipe_page.write(tmp_path, **finished[0] | {'pretraining': None})
  assert 'pretrain' not in page.read_text()


def test_every_task_has_images_with_prediction_and_truth(finished):
  assert (
    len(re.findall(r'<figcaption>prediction', finished[2]))
    == len(re.findall(r'<figcaption>truth', finished[2]))
    == 2
  )
  names = {file.name for file in (finished[1] / 'report' / 'samples').iterdir()}
  assert names == {
    'vqa-0.png',
    'vqa-1.png',
    'rec-0-prediction.png',
    'rec-0-truth.png',
    'rec-1-prediction.png',
    'rec-1-truth.png',
  }
  for name in ('overview', 'loss', 'mix_curve', 'scores'):
    assert Image.open(finished[1] / 'report' / f'{name}.png').size[0] > 500


TAGS = ('div', 'table', 'dl', 'figure', 'details', 'main', 'body', 'html', 'p', 'h2', 'h3')


def test_the_page_is_well_formed(finished):
  class Balance(html.parser.HTMLParser):
    open_tags = []

    def handle_starttag(self, tag, attributes):
      if tag in TAGS:
        self.open_tags.append(tag)

    def handle_endtag(self, tag):
      if tag in TAGS:
        assert self.open_tags.pop() == tag

  parser = Balance()
  parser.feed(finished[2])
  assert not parser.open_tags


def test_a_mix_that_is_worse_than_its_parents_is_reported(finished, tmp_path):
  arguments, _, _ = finished
  hill = [
    point | {'real': 2 + point['coefficient'] * (1 - point['coefficient']) * 4} for point in CURVE
  ]
  text = recipe_page.write(tmp_path, **(arguments | {'curve': hill})).read_text()
  assert 'worse than the better parent' in text and 'no worse' not in text


def test_a_recipe_without_a_mix_has_a_page(finished, tmp_path):
  arguments, _, _ = finished
  text = recipe_page.write(tmp_path, **(arguments | {'curve': [], 'targets': None})).read_text()
  assert 'mix"' not in text and 'four mixes' not in text
  assert not (tmp_path / 'report' / 'mix_curve.png').exists()


def test_the_verdict_compares_averages_with_the_better_parent():
  curve = [
    {'coefficient': 0.0, 'real': 3.0, 'synthetic': 1.0},
    {'coefficient': 0.5, 'real': 2.0, 'synthetic': 1.5},
    {'coefficient': 1.0, 'real': 1.8, 'synthetic': 2.4},
  ]
  assert recipe_page.curve_verdict(curve, 0.5) == {
    'coefficient': 0.5,
    'mixed': 1.75,
    'parents': {'real': 2.1, 'synthetic': 2.0},
    'best': 0.5,
    'ok': True,
  }
  assert (
    not recipe_page.curve_verdict(curve, 1.0)['ok'] and recipe_page.curve_verdict(curve, 0.0)['ok']
  )


def test_a_missing_file_is_named(finished, tmp_path):
  arguments, _, _ = finished
  with pytest.raises(errors.SphinxError, match='nowhere.json'):
    recipe_page.write(tmp_path, **(arguments | {'curve': tmp_path / 'nowhere.json'}))


@pytest.mark.filterwarnings('ignore:Glyph')
def test_no_text_of_the_data_becomes_markup_or_spoils_the_page(finished, tmp_path):
  arguments, work, _ = finished
  evaluation = tmp_path / 'evaluate'
  (evaluation / 'images').mkdir(parents=True)
  Image.new('RGB', (12, 8)).save(evaluation / 'images' / 'a.png')
  kept = [text for text in texts.HOSTILE.values() if len(text) < 1000]
  lines = [
    entry('vqa', 0, text, f'{text} [0.1, 0.1, 0.5, 0.5]', True)
    | {'id': text, 'instruction': text, 'image': 'images/a.png'}
    for text in kept
  ]
  (evaluation / 'results.json').write_text('{}')
  results = {}
  for i in range(0, len(lines), 4):  # A task shows four samples.
    name = f'<script>alert({i})</script> " onerror="x" $_{{'.replace('/', '\N{DIVISION SLASH}')
    results[name] = result(0.9, 0.3)
    (evaluation / f'{name}.final.jsonl').write_text(
      ''.join(json.dumps(line) + '\n' for line in lines[i : i + 4])
    )
  (evaluation / 'results.json').write_text(json.dumps(results))
  changes = {'config': {'name': texts.HOSTILE['script']}, 'evaluation': evaluation}
  file = recipe_page.write(tmp_path, **arguments | changes)
  page = texts.check_page(file.read_bytes())
  assert 'half \ufffd of an emoji' in page and '\\x1b[2J' in page
