"""IconQA: one directory per question; questions with images as choices are left out and logged."""

import logging

import pytest

from sphinx_jax import datasets as sources
from sphinx_jax.data.record import BadExample
from tests.datasets import image_files
from tests.datasets.question_trees import dump


def opened(root, **entry):
  return sources.open_source(dict(source='iconqa', root=str(root), max_turns=4) | entry, None)


@pytest.fixture(params=['iconqa', 'iconqa_data/iconqa', '.'])
def root(tmp_path, request):
  place = tmp_path / request.param / 'train'
  question = {'question': 'What comes next?', 'grade': 'grade1', 'label': 'S2'}
  for n in (2, 10):
    dump(
      place / f'choose_txt/{n}/data.json',
      {**question, 'choices': ['«Dreieck»', '5'], 'answer': 1},
    )
    image_files.write(place / f'choose_txt/{n}/image.png', form='PNG', mode='L')
  dump(place / 'fill_in_blank/3/data.json', {**question, 'answer': 12})
  image_files.write(place / 'fill_in_blank/3/image.png', form='PNG')
  dump(
    place / 'choose_img/4/data.json',
    {**question, 'choices': ['choice_0.png', 'choice_1.png'], 'answer': 0},
  )
  (place / 'choose_txt/.DS_Store').write_bytes(b'')
  return tmp_path


def test_choices_of_text_and_blanks(root, caplog, monkeypatch):
  monkeypatch.setattr(logging.getLogger('sphinx_jax'), 'propagate', True)
  with caplog.at_level(logging.INFO, 'sphinx_jax'):
    source = opened(root)
  assert '1 questions are left out' in caplog.text
  records = list(source)
  assert [record.id for record in records] == ['choose_txt-2', 'choose_txt-10', 'fill_in_blank-3']
  assert [record.turns[0][1] for record in records] == ['B', 'B', '12']
  assert 'Choices:\nA. «Dreieck»\nB. 5' in records[0].turns[0][0]
  assert records[0].truth[0]['choices'] == ['«Dreieck»', '5']


def test_a_broken_folder_is_one_bad_example(root):
  for path, data in zip(
    sorted(root.rglob('data.json'))[1:], (b'', b'[3]', b'{"question": "Is it?", "answer": ""}')
  ):
    path.write_bytes(data)
  source, reasons = opened(root), []
  for index in range(len(source)):
    try:
      source[index]
    except BadExample as error:
      reasons.append(error.reason)
  assert sorted(reasons) == ['empty answer', 'malformed record', 'not json']
