"""The official trees of question datasets, written with a few questions: what each family's tests start from.

A tree is a function (root, asked) that writes the files of the first split, without pictures, and returns the place of a
picture: number -> path. Questions have the answer 'yes' or 'no' (None: not told), as every family can say those.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
  """A question about picture `picture`; number: its id, where a dataset lets one choose it."""

  number: int
  picture: int
  text: str
  answer: str | None = 'yes'


def dump(path: Path, value) -> None:
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(json.dumps(value, ensure_ascii=False), 'utf-8')


def _without_none(record: dict) -> dict:
  return {key: value for key, value in record.items() if value is not None}


def _ten(answer: str | None) -> list | None:
  """Seven annotators agree."""
  other = 'no' if answer == 'yes' else 'yes'
  said = [other] * 3 + [answer] * 7
  return answer and [
    {'answer': said[i], 'answer_confidence': 'maybe', 'answer_id': i + 1} for i in range(10)
  ]


def vqav2(root: Path, asked, prefix: str = 'v2_') -> Callable[[int], Path]:
  dump(
    root / f'{prefix}OpenEnded_mscoco_train2014_questions.json',
    {
      'info': {},
      'questions': [
        {'image_id': q.picture, 'question': q.text, 'question_id': q.number} for q in asked
      ],
    },
  )
  answered = [
    {
      'image_id': q.picture,
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
  return lambda picture: root / f'train2014/COCO_train2014_{picture:012d}.jpg'


def okvqa(root: Path, asked) -> Callable[[int], Path]:
  return vqav2(root, asked, '')


def aokvqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'aokvqa_v1p0_train.json',
    [
      _without_none(
        {
          'split': 'train',
          'image_id': q.picture,
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
  return lambda picture: root / f'train2017/{picture:012d}.jpg'


def gqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'questions1.2/train_balanced_questions.json',
    {
      f'0{q.number}': _without_none(
        {
          'question': q.text,
          'imageId': f'n{q.picture}',
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
  return lambda picture: root / f'images/n{picture}.jpg'


def ocrvqa(root: Path, asked) -> Callable[[int], Path]:
  books: dict = {}
  for q in asked:
    book = books.setdefault(
      f'00{q.picture}',
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
  return lambda picture: root / f'images/00{picture}.jpg'


def textvqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'TextVQA_0.5.1_train.json',
    {
      'dataset_name': 'textvqa',
      'data': [
        _without_none(
          {
            'question': q.text,
            'image_id': f'0a{q.picture}',
            'image_width': 1024,
            'image_height': 768,
            'question_id': q.number,
            'set_name': 'train',
            'answers': q.answer and [said['answer'] for said in _ten(q.answer)],
          }
        )
        for q in asked
      ],
    },
  )
  return lambda picture: root / f'train_images/0a{picture}.jpg'


def vizwiz(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'Annotations/train.json',
    [
      _without_none(
        {
          'answerable': 1,
          'image': f'VizWiz_train_{q.picture:08d}.jpg',
          'question': q.text,
          'answer_type': 'other',
          'answers': _ten(q.answer),
        }
      )
      for q in asked
    ],
  )
  return lambda picture: root / f'train/VizWiz_train_{picture:08d}.jpg'


def scienceqa(root: Path, asked) -> Callable[[int], Path]:
  dump(
    root / 'problems.json',
    {
      str(q.picture): _without_none(
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
  dump(root / 'pid_splits.json', {'train': [str(q.picture) for q in asked], 'val': []})
  return lambda picture: root / f'images/train/{picture}/image.png'


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
            'image': f'documents/x{q.picture}_1.png',
            'docId': 1,
            'data_split': 'train',
            'answers': q.answer and [q.answer, q.answer.upper()],
          }
        )
        for q in asked
      ],
    },
  )
  return lambda picture: root / f'train/documents/x{picture}_1.png'


def chartqa(root: Path, asked) -> Callable[[int], Path]:
  for part, own in (('human', asked[::2]), ('augmented', asked[1::2])):
    dump(
      root / f'ChartQA Dataset/train/train_{part}.json',
      [
        _without_none({'imgname': f'{q.picture}.png', 'query': q.text, 'label': q.answer})
        for q in own
      ],
    )
  return lambda picture: root / f'ChartQA Dataset/train/png/{picture}.png'


def ai2d(root: Path, asked) -> Callable[[int], Path]:
  for picture in {q.picture for q in asked} | {700}:
    dump(
      root / f'questions/{picture}.png.json',
      {
        'imageName': f'{picture}.png',
        'questions': {
          q.text: _without_none(
            {
              'questionId': f'{picture}.png-{q.number}',
              'abcLabel': False,
              'answerTexts': ['{}', 'no', 'yes', 'cat'],
              'correctAnswer': q.answer and 1 + int(q.answer == 'yes'),
            }
          )
          for q in asked
          if q.picture == picture
        },
      },
    )
  (root / 'ai2d_test_ids.csv').write_text('700\n')
  return lambda picture: root / f'images/{picture}.png'


def iconqa(root: Path, asked) -> Callable[[int], Path]:
  for q in asked:
    dump(
      root / f'iconqa/train/fill_in_blank/{q.picture}/data.json',
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
  return lambda picture: root / f'iconqa/train/fill_in_blank/{picture}/image.png'


def vsr(root: Path, asked) -> Callable[[int], Path]:
  lines = [
    json.dumps(
      _without_none(
        {
          'image': f'{q.picture:012d}.jpg',
          'image_link': f'http://images.cocodataset.org/train2017/{q.picture:012d}.jpg',
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
  return lambda picture: root / f'images/{picture:012d}.jpg'


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
# Families in which no two questions share a picture.
ALONE = ('scienceqa', 'iconqa')
# What a family trains for 'yes' in these trees.
YES = {'scienceqa': 'B', 'ai2d': 'B', 'vsr': 'true'}
