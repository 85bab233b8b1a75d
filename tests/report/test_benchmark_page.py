import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from sphinx_jax.report import benchmark_page
from tests.report import texts


def case(n, answer, truth, score, image=True):
  return {
    'id': f'q{n}',
    'prompt': f'Where <{n}>?',
    'answer': answer,
    'truth': truth,
    'score': score,
    'image': f'cases/{n}.jpg' if image else None,
  }


@pytest.fixture
def html(tmp_path):
  (tmp_path / 'cases').mkdir()
  for n in range(4):
    Image.fromarray(np.full((80, 120, 3), 200, np.uint8)).save(tmp_path / 'cases' / f'{n}.jpg')
  groups = {
    'refcoco': {
      'best': [case(0, '[0.10, 0.30, 0.50, 0.70]', '[0.10, 0.30, 0.60, 0.70]', 1.0)],
      'worst': [case(1, 'no idea', '[0.10, 0.30, 0.60, 0.70]', 0.0)],
    },
    'vqa': {'best': [case(2, 'red', 'red', 0.9)], 'worst': []},
    'hidden': {'first': [case(3, 'a <b>', '', None), case(4, 'x', '', None, image=False)]},
  }
  for name, cases in groups.items():
    (tmp_path / 'cases' / f'{name}.json').write_text(json.dumps(cases))
  results = {
    name: {
      'metric': 'm',
      'variant': 'SPHINX',
      'note': 'not run here',
      'questions': 10,
      'skipped': name == 'vqa',
      'official': False,
    }
    for name in groups
  }
  rows = [
    {
      'benchmark': name,
      'metric': metric,
      'score': '12.34',
      'published': published,
      'questions': '10',
      'skipped': '0',
    }
    for name, metric, published in (
      ('refcoco', 'm', '91.1'),
      ('refcoco', 'other', ''),
      ('vqa', 'm', ''),
      ('hidden', 'm', '80.7'),
    )
  ]
  file = benchmark_page.write(tmp_path, '/run at step <7>', results, rows)
  return file.read_text()


def images(text):
  return [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int)
    for data in re.findall(r'src="data:image/jpeg;base64,([^"]*)"', text)
  ]


def test_answer_and_truth_are_drawn_side_by_side_if_one_has_a_box(html):
  captions = re.findall(r'<figcaption>(\w+)', html)
  assert captions == ['answer', 'truth', 'answer', 'truth']
  shown = images(html)
  assert len(shown) == 6
  drawn = [bool((np.abs(image - 200) > 60).any()) for image in shown]
  assert drawn == [True, True, False, True, False, False]  # 'no idea' has no box, its truth has.


def test_the_page_shows_scores_and_cases_and_needs_no_other_file(html):
  for words in (
    '12.34',
    '91.1',
    '80.7',
    'Where &lt;0&gt;?',
    'a &lt;b&gt;',
    '/run at step &lt;7&gt;',
    'other',
    '>best<',
    '>worst<',
    '>first<',
  ):
    assert words in html, words
  assert re.search(r'<b class="bad">1</b>could not be asked', html)
  sources = re.findall(r'(?:src|href)="([^"]*)"', html)
  assert all(source.startswith(('data:image/jpeg;base64,', '#')) for source in sources)
  assert {link[1:] for link in sources if link[0] == '#'} <= set(re.findall(r'id="([^"]*)"', html))


def test_no_text_of_the_data_becomes_markup_or_spoils_the_page(tmp_path):
  (tmp_path / 'cases').mkdir()
  Image.new('RGB', (12, 8)).save(tmp_path / 'cases' / '0.jpg')
  cases = [
    case(0, text, f'{text} [0.1, 0.1, 0.5, 0.5]', 1.0) | {'id': text, 'prompt': text}
    for text in texts.HOSTILE.values()
    if len(text) < 1000
  ]
  (tmp_path / 'cases' / 'vqa.json').write_text(json.dumps({'best': cases}))
  hostile = texts.HOSTILE['attribute'] + texts.HOSTILE['script'] + texts.HOSTILE['surrogate']
  fields = dict.fromkeys(['metric', 'score', 'published'], hostile)
  row = fields | {'benchmark': 'vqa', 'questions': 1, 'skipped': 0}
  results = {'vqa': fields | dict(variant=hostile, questions=1, skipped=0, official=True)}
  page = texts.check_page(benchmark_page.write(tmp_path, hostile, results, [row]).read_bytes())
  assert 'half \ufffd of an emoji' in page and '\\x1b[2J' in page
