"""Readers of the other benchmarks, on small files in their formats."""

import json

import pytest

from sphinx_jax.core.coordinates import KEYPOINTS
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PROTOCOLS
from tests.evaluation.benchmarks import benchmark_files

ASK = 'Answer with the option"s letter from the given choices directly.'


def scored(benchmark, answers):
  return PROTOCOLS[benchmark.protocol](
    [
      question.entry | {'id': question.id, 'answer': answer}
      for question, answer in zip(benchmark.questions, answers, strict=True)
    ]
  )


def test_pope(tmp_path):
  lines = [
    {
      'question_id': i + 1,
      'image': 'COCO_val2014_000000310196.jpg',
      'text': f'Is there a {thing} in the image?',
      'label': label,
    }
    for i, (thing, label) in enumerate([('snowboard', 'yes'), ('dog', 'no'), ('dog', 'no')])
  ]
  benchmark_files.file(
    tmp_path, 'data/pope/coco_pope_random.json', '\n'.join(map(json.dumps, lines)) + '\n'
  )
  benchmark = benchmark_files.opened('pope_random', tmp_path)
  first = benchmark.questions[0]
  assert (
    first.prompt
    == 'Is there a snowboard in the image?\nAnswer the question using a single word or phrase.'
  )
  assert first.images[0] == tmp_path / 'data/coco/val2014/COCO_val2014_000000310196.jpg'
  assert (
    scored(benchmark, ['Yes', 'No', 'No'])['f1'] == 1
    and scored(benchmark, ['No', 'Yes', 'Yes'])['accuracy'] == 0
  )
  benchmark_files.file(tmp_path, 'data/pope/coco_pope_random.json', '{"question_id": 1}\n')
  with pytest.raises(SphinxError, match="without 'text'"):
    benchmark_files.opened('pope_random', tmp_path)
  benchmark_files.file(tmp_path, 'data/pope/coco_pope_random.json', '[')
  with pytest.raises(SphinxError, match='line 1: .* not JSON'):
    benchmark_files.opened('pope_random', tmp_path)


def test_mmbench_asks_every_rotation(tmp_path):
  benchmark_files.mmbench(
    tmp_path,
    [
      {
        'index': 241,
        'question': 'Which is "true"?\nSay it.',
        'hint': 'Look\tup.',
        'A': 'cat',
        'B': 'dog',
        'C': 'cow',
        'D': 'nan',
        'answer': 'B',
      },
      {'index': 5, 'question': 'Ant or bee?', 'hint': 'nan', 'A': 'ant', 'B': 'bee', 'answer': 'A'},
    ],
  )
  benchmark = benchmark_files.opened('mmbench_dev', tmp_path)
  assert [question.id for question in benchmark.questions] == [
    '5-0',
    '5-1',
    '241-0',
    '241-1',
    '241-2',
  ]
  assert [question.entry['gt_answers'] for question in benchmark.questions] == [
    'A',
    'B',
    'B',
    'A',
    'C',
  ]
  assert benchmark.questions[0].prompt == f'Question:\nAnt or bee?\nChoices:\nA. ant\nB. bee\n{ASK}'
  assert benchmark.questions[3].prompt == (
    'Context:\nLook\tup.\nQuestion:\nWhich is "true"?\nSay it.\n'
    f'Choices:\nA. dog\nB. cow\nC. cat\n{ASK}'
  )
  assert benchmark.questions[3].images[0].startswith(b'picture 241')
  json.dumps([question.entry for question in benchmark.questions])  # Plain JSON.
  assert scored(benchmark, 'ABBAC')['accuracy'] == 1
  assert scored(benchmark, 'ABBAA') == {
    'accuracy': 0.5,
    'accuracy without rotation': 1,
    'perception': 0.5,
    'finding': 0.5,
  }
  assert scored(benchmark, 'BACBA')['accuracy'] == 0


def test_mmbench_files_with_rotations_are_taken_as_they_are(tmp_path):
  benchmark_files.mmbench(
    tmp_path,
    [
      {
        'index': 1000005,
        'question': 'Ant or bee?',
        'A': 'bee',
        'B': 'ant',
        'answer': 'B',
        'image': '5',
      },
      {'index': 5, 'question': 'Ant or bee?', 'A': 'ant', 'B': 'bee', 'answer': 'A'},
    ],
    'data/mmbench/MMBench_DEV_EN.tsv',
  )
  benchmark = benchmark_files.opened('mmbench_dev', tmp_path)
  assert [question.id for question in benchmark.questions] == ['5-0', '5-1']
  assert (
    benchmark.questions[1].images[0] == benchmark.questions[0].images[0]
    and 'A. bee' in benchmark.questions[1].prompt
  )
  assert scored(benchmark, 'AB')['accuracy'] == 1 and scored(benchmark, 'AA')['accuracy'] == 0


@pytest.mark.parametrize(
  'line, message',
  [
    ({'index': 1, 'question': 'A?', 'A': 'a', 'B': 'b', 'answer': 'C'}, "answer 'C'"),
    (
      {'index': 1, 'question': 'A?', 'A': 'a', 'B': 'b', 'answer': 'A', 'image': '?' * 90},
      'not base64',
    ),
  ],
)
def test_another_mmbench_file_is_refused(tmp_path, line, message):
  benchmark_files.mmbench(tmp_path, [line])
  with pytest.raises(SphinxError, match=message):
    benchmark_files.opened('mmbench_dev', tmp_path)
  benchmark_files.file(
    tmp_path, 'data/mmbench/mmbench_dev_20230712.tsv', 'index\tquestion\nx\tA?\n'
  )
  with pytest.raises(SphinxError, match="index 'x'"):
    benchmark_files.opened('mmbench_dev', tmp_path)


@pytest.mark.parametrize('line', ['1\tA?', '1\tA?\tcut\toff', '1\t"A?\n2\tB?\n'])
def test_mmbench_rows_with_other_columns_are_refused(tmp_path, line):
  path = 'data/mmbench/mmbench_dev_20230712.tsv'
  benchmark_files.file(tmp_path, path, f'index\tquestion\timage\n{line}')
  with pytest.raises(SphinxError, match='row 1 of .* with other columns'):
    benchmark_files.opened('mmbench_dev', tmp_path)


def test_seed_bench_asks_about_images_only(tmp_path):
  def row(number, kind, data, answer):
    return {
      'question_id': number,
      'question': 'How many?',
      'choice_a': 'One',
      'choice_b': 'Two',
      'choice_c': 'Three',
      'choice_d': 'Four',
      'answer': answer,
      'data_id': data,
      'data_type': 'image' if kind < 10 else 'video',
      'question_type_id': kind,
    }

  benchmark_files.file(
    tmp_path,
    'data/SEED_Bench/SEED-Bench.json',
    {
      'question_type': {},
      'questions': [
        row('101669', 5, '1454426_2591111986', 'B'),
        row('1', 10, 'clip.mp4', 'A'),
        row('7', 1, '2', 'D'),
      ],
    },
  )
  benchmark = benchmark_files.opened('seed_bench', tmp_path)
  assert [question.id for question in benchmark.questions] == ['101669', '7']
  first = benchmark.questions[0]
  assert first.prompt == f'Question:\nHow many?\nChoices:\nA. One\nB. Two\nC. Three\nD. Four\n{ASK}'
  assert first.images[0] == tmp_path / 'data/SEED_Bench/SEED-Bench-image/1454426_2591111986'
  assert scored(benchmark, ['B', 'D']) == {
    'accuracy': 1,
    'instance counting': 1,
    'scene understanding': 1,
  }
  assert scored(benchmark, ['A', 'A'])['accuracy'] == 0
  for wrong in ({'answer': 'E'}, {'question_type_id': 'five'}, {'choice_b': None}):
    questions = {'questions': [row('1', 5, '2', 'B') | wrong]}
    benchmark_files.file(tmp_path, 'data/SEED_Bench/SEED-Bench.json', questions)
    with pytest.raises(SphinxError, match="^benchmark 'seed_bench': "):
      benchmark_files.opened('seed_bench', tmp_path)


def test_an_id_that_no_submission_can_have_is_refused_before_the_questions_are_asked(tmp_path):
  for name, file, key, id_key in [
    (
      'vqav2_testdev',
      'data/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json',
      'questions',
      'question_id',
    ),
    ('docvqa_test', 'data/docvqa/test/test_v1.0.json', 'data', 'questionId'),
  ]:
    rows = [{id_key: 'one', 'question': 'q', 'image_id': 1, 'image': 'a.png'}]
    benchmark_files.file(tmp_path, file, {key: rows})
    with pytest.raises(SphinxError, match=f"'one' under '{id_key}'.*a whole number"):
      benchmark_files.opened(name, tmp_path)


@pytest.mark.parametrize(
  'name, file, images',
  [
    ('coco_detection_val2017', 'data/coco/annotations/instances_val2017.json', 'data/coco/val2017'),
    ('doclaynet_test', 'data/doclaynet/COCO/test.json', 'data/doclaynet/PNG'),
  ],
)
def test_boxes_of_every_image(tmp_path, name, file, images):
  benchmark_files.file(tmp_path, file, benchmark_files.instances())
  benchmark = benchmark_files.opened(name, tmp_path)
  assert [question.id for question in benchmark.questions] == [
    '139',
    '7',
  ]  # Also the image without objects.
  assert benchmark.questions[0].images[0] == tmp_path / images / '000000000139.jpg'
  # 640 x 480 is padded by 80 above: y is (100 + 80) / 640.
  right = 'cat [0.15625, 0.28125, 0.46875, 0.59375]'
  assert scored(benchmark, [right, ''])['AP'] == pytest.approx(1)
  assert scored(benchmark, [right.replace('cat', 'dog'), right])['AP'] == 0


def test_poses_of_every_person_with_keypoints(tmp_path):
  benchmark_files.file(
    tmp_path, 'data/coco/annotations/person_keypoints_val2017.json', benchmark_files.keypoints()
  )
  benchmark = benchmark_files.opened('coco_pose_val2017', tmp_path)
  assert [question.id for question in benchmark.questions] == ['11', '12']
  assert (
    benchmark.questions[0].prompt
    == 'Detect the keypoints of the person in [0.03, 0.27, 0.22, 0.59].'
  )
  assert [len(question.entry['others']) for question in benchmark.questions] == [2, 0]
  answers = [
    ', '.join(
      f'{name} [{(x + 5 * i) / 640:.6f}, {(100 + 11 * i + 80) / 640:.6f}]'
      for i, name in enumerate(KEYPOINTS)
    )
    for x in (20, 200)
  ]
  assert scored(benchmark, answers)['AP'] == pytest.approx(1)
  assert scored(benchmark, ['nose [0.9, 0.9]', ''])['AP'] == 0


def test_captions_of_coco_and_of_karpathys_split(tmp_path):
  captions = [
    {'id': i, 'image_id': 139, 'caption': text}
    for i, text in enumerate(['A cat sits on a mat.', 'Ein Kätzchen'])
  ]
  benchmark_files.file(
    tmp_path,
    'data/coco/annotations/captions_val2017.json',
    {**benchmark_files.instances(), 'annotations': captions},
  )
  benchmark = benchmark_files.opened('coco_caption_val2017', tmp_path)
  [question] = benchmark.questions  # An image without a caption is not asked about.
  assert question.entry['gt_answers'] == ['A cat sits on a mat.', 'Ein Kätzchen']
  assert scored(benchmark, ['A cat sits on a mat.'])['BLEU-4'] == 1

  def row(number, split):
    return {
      'filepath': 'val2014',
      'filename': f'COCO_val2014_{number:012d}.jpg',
      'cocoid': number,
      'split': split,
      'sentences': [{'raw': f'Thing {number} stands over there.', 'tokens': []}],
    }

  benchmark_files.file(
    tmp_path,
    'data/coco/dataset_coco.json',
    {'images': [row(1, 'test'), row(2, 'restval'), row(3, 'test')]},
  )
  benchmark = benchmark_files.opened('coco_caption_karpathy_test', tmp_path)
  assert [question.id for question in benchmark.questions] == ['1', '3']
  assert (
    benchmark.questions[1].images[0] == tmp_path / 'data/coco/val2014/COCO_val2014_000000000003.jpg'
  )
  perfect = scored(benchmark, [question.entry['gt_answers'][0] for question in benchmark.questions])
  assert perfect == pytest.approx({'CIDEr': 10, 'BLEU-1': 1, 'BLEU-2': 1, 'BLEU-3': 1, 'BLEU-4': 1})


def test_phrases_of_flickr30k_entities(tmp_path):
  root = 'data/flickr30k_entities'
  benchmark_files.file(tmp_path, f'{root}/test.txt', '36979\n')
  benchmark_files.file(tmp_path, f'{root}/flickr30k-images/36979.jpg', b'')
  benchmark_files.file(
    tmp_path,
    f'{root}/Sentences/36979.txt',
    (
      '[/EN#1/people Two men] in [/EN#2/clothing red hats] wait in [/EN#3/scene the street] .\n'
      '[/EN#1/people They] wait .\n'
    ),
  )

  def thing(name, **sides):
    box = ''.join(f'<{side}>{value}</{side}>' for side, value in sides.items())
    return f'<object><name>{name}</name><bndbox>{box}</bndbox></object>'

  men = [thing(1, xmin=x, ymin=51, xmax=x + 100, ymax=151) for x in (1, 301)]
  benchmark_files.file(
    tmp_path,
    f'{root}/Annotations/36979.xml',
    (
      '<annotation><size><width>400</width><height>200</height><depth>3</depth></size>'
      f'{"".join(men)}{thing(2, xmin=1, ymin=1, xmax=401, ymax=51)}'
      '<object><name>3</name><scene>1</scene><nobndbox>1</nobndbox></object></annotation>'
    ),
  )
  benchmark = benchmark_files.opened('flickr30k_grounding_test', tmp_path)
  assert [question.entry['question'] for question in benchmark.questions] == [
    'Two men',
    'red hats',
    'They',
  ]
  first = benchmark.questions[0]
  assert (
    first.prompt
    == 'Please provide the bounding box coordinate of the region this sentence describes: Two men.'
  )
  assert (
    first.images[0]
    == tmp_path / root / 'flickr30k-images/36979.jpg'
    == tmp_path / first.entry['image_path']
  )
  assert first.entry['gt_answers'] == [[0, 50, 100, 150], [300, 50, 400, 150]]
  man, hats, both = '[0, 0.375, 0.25, 0.625]', '[0, 0.25, 1, 0.375]', '[0, 0.375, 1, 0.625]'
  assert scored(benchmark, [man, hats, both]) == pytest.approx(
    {'recall@1 any box': 2 / 3, 'recall@1 merged box': 2 / 3}
  )
  assert scored(benchmark, [hats, man, '']) == {'recall@1 any box': 0, 'recall@1 merged box': 0}
  benchmark_files.file(tmp_path, f'{root}/Annotations/36979.xml', '<annotation>')
  with pytest.raises(SphinxError, match='36979.xml'):
    benchmark_files.opened('flickr30k_grounding_test', tmp_path)


@pytest.mark.parametrize(
  'value, message',
  [
    ({'images': []}, "no list 'annotations'"),
    ([], 'a list'),
    ({'images': 3, 'categories': [], 'annotations': []}, "no list 'images'"),
    ({'images': [{'id': 1}], 'categories': [], 'annotations': []}, "without 'file_name'"),
    (
      {**benchmark_files.instances(), 'images': benchmark_files.instances()['images'] * 2},
      'two images with the id 139',
    ),
  ],
)
def test_another_coco_file_is_refused(tmp_path, value, message):
  benchmark_files.file(tmp_path, 'data/coco/annotations/instances_val2017.json', value)
  with pytest.raises(SphinxError, match=message):
    benchmark_files.opened('coco_detection_val2017', tmp_path)
