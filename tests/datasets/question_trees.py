"""Writes small trees of question datasets.

A tree is a function (root, asked) that writes the files of the first split, without images, and
returns the function image number -> path. The answer of a question is 'yes', 'no' or None (hidden),
which every family can represent.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
  """A question about an image. `number` is its id, if the dataset allows to choose it."""

  number: int
  image: int
  text: str
  answer: str | None = 'yes'


def dump(path: Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, ensure_ascii=False), 'utf-8')


def _without_none(record: dict) -> dict:
  return {key: value for key, value in record.items() if value is not None}


def _ten(answer: str | None) -> list | None:
  """Ten annotators, of whom seven agree."""
  other = 'no' if answer == 'yes' else 'yes'
  answers = [other] * 3 + [answer] * 7
  return answer and [
    {'answer': answers[i], 'answer_confidence': 'maybe', 'answer_id': i + 1} for i in range(10)
  ]


def vqav2(root: Path, asked, prefix: str = 'v2_') -> Callable[[int], Path]:
  dump(
    root / f'{prefix}OpenEnded_mscoco_train2014_questions.json',
    {
      'info': {},
      'questions': [
        {'image_id': q.image, 'question': q.text, 'question_id': q.number} for q in asked
      ],
    },
  )
  answered = [
    {
      'image_id': q.image,
      'question_id': q.number,
      'answers': _ten(q.answer),
      'answer_type': 'yes/no',
      'question_type': 'is',
      'multiple_choice_answer': q.answer if prefix else None,
    }
    for q in asked
    if q.answer
  ]
  dump(
    root / f'{prefix}mscoco_train2014_annotations.json',
    {'annotations': [_without_none(record) for record in answered]},
  )
  return lambda image: root / f'train2014/COCO_train2014_{image:012d}.jpg'


def okvqa(root: Path, asked) -> Callable[[int], Path]:
  return vqav2(root, asked, '')


def aokvqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'aokvqa_v1p0_train.json',
    [
      _without_none(
        {
          'split': 'train',
          'image_id': q.image,
          'question_id': f'Q{q.number}',
          'question': q.text,
          'rationales': ['It is so.'],
          'choices': ['no', 'yes', 'cat', 'dog'],
          'correct_choice_idx': q.answer and int(q.answer == 'yes'),
          'difficult_direct_answer': False,
          'direct_answers': q.answer and [q.answer] * 9 + ['cat'],
        }
      )
      for q in asked
    ],
  )
  return lambda image: root / f'train2017/{image:012d}.jpg'


def gqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'questions1.2/train_balanced_questions.json',
    {
      f'0{q.number}': _without_none(
        {
          'question': q.text,
          'imageId': f'n{q.image}',
          'answer': q.answer,
          'isBalanced': True,
          'fullAnswer': 'Yes.',
          'entailed': [],
          'types': {'semantic': 'obj'},
          'semantic': [{'operation': 'select', 'dependencies': [], 'argument': 'sky (1)'}],
        }
      )
      for q in asked
    },
  )
  return lambda image: root / f'images/n{image}.jpg'


def ocrvqa(root: Path, asked) -> Callable[[int], Path]:
  books: dict = {}
  for q in asked:
    book = books.setdefault(
      f'00{q.image}',
      {
        'imageURL': f'http://images.example/{q.number}.jpg',
        'questions': [],
        'answers': [],
        'title': 'T',
        'authorName': 'A',
        'genre': 'G',
        'split': 1,
      },
    )
    book['questions'].append(q.text)
    book['answers'].append(q.answer or '')
  other = {
    '00999': {'imageURL': '1.jpg', 'questions': ['?'], 'answers': ['of another split'], 'split': 3}
  }
  dump(root / 'dataset.json', books | other)
  return lambda image: root / f'images/00{image}.jpg'


def textvqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'TextVQA_0.5.1_train.json',
    {
      'dataset_name': 'textvqa',
      'data': [
        _without_none(
          {
            'question': q.text,
            'image_id': f'0a{q.image}',
            'image_width': 1024,
            'image_height': 768,
            'question_id': q.number,
            'set_name': 'train',
            'answers': q.answer and [answers['answer'] for answers in _ten(q.answer)],
          }
        )
        for q in asked
      ],
    },
  )
  return lambda image: root / f'train_images/0a{image}.jpg'


def vizwiz(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'Annotations/train.json',
    [
      _without_none(
        {
          'answerable': 1,
          'image': f'VizWiz_train_{q.image:08d}.jpg',
          'question': q.text,
          'answer_type': 'other',
          'answers': _ten(q.answer),
        }
      )
      for q in asked
    ],
  )
  return lambda image: root / f'train/VizWiz_train_{image:08d}.jpg'


def scienceqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'problems.json',
    {
      str(q.image): _without_none(
        {
          'question': q.text,
          'choices': ['no', 'yes'],
          'answer': q.answer and int(q.answer == 'yes'),
          'hint': 'Look.',
          'image': 'image.png',
          'split': 'train',
          'lecture': '',
          'solution': '',
        }
      )
      for q in asked
    },
  )
  dump(root / 'pid_splits.json', {'train': [str(q.image) for q in asked], 'val': []})
  return lambda image: root / f'images/train/{image}/image.png'


def docvqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'train/train_v1.0.json',
    {
      'dataset_name': 'docvqa',
      'data': [
        _without_none(
          {
            'questionId': q.number,
            'question': q.text,
            'image': f'documents/x{q.image}_1.png',
            'docId': 1,
            'data_split': 'train',
            'answers': q.answer and [q.answer, q.answer.upper()],
          }
        )
        for q in asked
      ],
    },
  )
  return lambda image: root / f'train/documents/x{image}_1.png'


def chartqa(root: Path, asked) -> Callable[[int], Path]:
  for part, own in (('human', asked[::2]), ('augmented', asked[1::2])):
    dump(
      root / f'ChartQA Dataset/train/train_{part}.json',
      [
        _without_none({'imgname': f'{q.image}.png', 'query': q.text, 'label': q.answer})
        for q in own
      ],
    )
  return lambda image: root / f'ChartQA Dataset/train/png/{image}.png'


def ai2d(root: Path, asked) -> Callable[[int], Path]:
  for image in {q.image for q in asked} | {700}:
    dump(
      root / f'questions/{image}.png.json',
      {
        'imageName': f'{image}.png',
        'questions': {
          q.text: _without_none(
            {
              'questionId': f'{image}.png-{q.number}',
              'abcLabel': False,
              'answerTexts': ['{}', 'no', 'yes', 'cat'],
              'correctAnswer': q.answer and 1 + int(q.answer == 'yes'),
            }
          )
          for q in asked
          if q.image == image
        },
      },
    )
  (root / 'ai2d_test_ids.csv').write_text('700\n')
  return lambda image: root / f'images/{image}.png'


def iconqa(root: Path, asked) -> Callable[[int], Path]:
  for q in asked:
    dump(
      root / f'iconqa/train/fill_in_blank/{q.image}/data.json',
      _without_none(
        {
          'question': q.text,
          'answer': q.answer,
          'ques_type': 'fill_in_blank',
          'grade': 'grade1',
          'label': 'S1',
        }
      ),
    )
  return lambda image: root / f'iconqa/train/fill_in_blank/{image}/image.png'


def vsr(root: Path, asked) -> Callable[[int], Path]:
  lines = [
    json.dumps(
      _without_none(
        {
          'image': f'{q.image:012d}.jpg',
          'image_link': f'http://images.cocodataset.org/train2017/{q.image:012d}.jpg',
          'caption': q.text,
          'label': q.answer and int(q.answer == 'yes'),
          'relation': 'on',
          'annotator_id': 3,
        }
      )
    )
    for q in asked
  ]
  (root / 'splits/random').mkdir(parents=True)
  (root / 'splits/random/train.jsonl').write_text('\n'.join(lines) + '\n')
  (root / 'images').mkdir()
  return lambda image: root / f'images/{image:012d}.jpg'


TREES = {
  tree.__name__: tree
  for tree in (
    vqav2,
    okvqa,
    aokvqa,
    gqa,
    ocrvqa,
    textvqa,
    vizwiz,
    scienceqa,
    docvqa,
    chartqa,
    ai2d,
    iconqa,
    vsr,
  )
}
# Families in which no two questions share an image.
ALONE = ('scienceqa', 'iconqa')
# What a family trains for 'yes' in these trees.
YES = {'scienceqa': 'B', 'ai2d': 'B', 'vsr': 'true'}
