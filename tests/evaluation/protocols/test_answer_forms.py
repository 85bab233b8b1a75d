"""The same answers in many forms through the protocols of all benchmarks."""

import random

import pytest

from sphinx_jax.core import boxes
from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation import scores
from sphinx_jax.evaluation.benchmarks import benchmark as base
from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS, UNREAD, box_forms
from sphinx_jax.tasks.questions import official_choice_question
from tests.report import texts

CHOICES = {'A': 'cat', 'B': 'dog', 'C': 'cow'}
QUESTION = {'question': official_choice_question('Which?', CHOICES), 'gt_answers': 'B'}
BENCHMARKS = {  # Name -> (protocol, entry).
  'scienceqa': ('accuracy', QUESTION),
  'mmbench': ('mmbench', {'choices': CHOICES, 'gt_answers': 'B'}),
  'seed_bench': ('seed_bench', {'choices': CHOICES, 'gt_answers': 'B', 'question_type_id': 1}),
  'ai2d': ('accuracy', {'question': 'Which?cat\ndog\ncow', 'gt_answers': 'dog'}),
  'mme': ('mme_score', {'gt_answers': 'No'}),
  'pope': ('pope', {'gt_answers': 'no'}),
  'gqa': ('gqa_accuracy', {'gt_answers': 'no'}),
  'vsr': ('accuracy', {'gt_answers': 'false'}),
  'mmmu': ('accuracy', {'gt_answers': '1.06'}),
  'vqa': ('vqa_score', {'gt_answers': ['red'] * 10}),
  'docvqa': ('anls', {'gt_answers': ['red', 'dark red']}),
}
LETTERED = ('scienceqa', 'mmbench', 'seed_bench')
RIGHT = {
  LETTERED: ['**B**', 'The answer is B because y fits.', 'Answer: **B**', 'B) the dog', '(b)', 'b']
  + ['B: dog', 'Option B', '\\boxed{B}', 'dog', 'It is a dog.'],
  ('ai2d',): ['dog', 'Dog.', '**dog**', 'The answer is dog.', 'Answer: dog', '\\boxed{dog}']
  + ['\\boxed{\\text{dog}}', '"dog"', 'Which?</think>dog', 'It is dog.'],
  ('mme', 'pope', 'gqa'): ['No', 'no.', '**No**', 'NO', 'No, there is none', 'There is no dog.'],
  ('pope',): ["There isn't a dog.", 'It is not there.', 'Nope.', 'There are none.'],
  ('vsr',): ['False', '**False**', 'The statement is false.', 'False, it is not.'],
  ('mmmu',): ['1.06', '$1.06$', '1.06 m', 'Answer: 1.06', '\\boxed{1.06}', 'x = 1.06 m']
  + ['The capacitance is 1.06 uF.', 'The result is **1.06**.', 'We add, so R = 0.5 + 0.56 = 1.06.'],
  ('vqa', 'docvqa'): ['red', '**red**', '`Red`'],
}
WRONG = {
  LETTERED: ['**A**', 'A or B', 'A, B', 'The answer is C.', 'cat', 'cat or dog', '', 'none'],
  ('ai2d',): ['cat', 'The answer is cat.', 'dog or cat', ''],
  ('mme', 'pope', 'gqa'): ['Yes', '**Yes**', 'Yes, there is no doubt', 'The answer is yes.', ''],
  ('vsr',): ['True', 'True or false', ''],
  ('mmmu',): ['106', '10.6', '', '1.06 or 2', 'It is not 1.06'],
  ('vqa', 'docvqa'): ['blue', '**blue**'],
}


def cases(table, value):
  return [
    (name, answer, value) for names, texts in table.items() for name in names for answer in texts
  ]


@pytest.mark.parametrize('name, answer, value', cases(RIGHT, 1) + cases(WRONG, 0))
def test_every_form_of_an_answer_scores_what_it_means(name, answer, value):
  protocol, entry = BENCHMARKS[name]
  (score,) = PER_EXAMPLE[protocol]([entry | {'answer': answer}])
  assert score == pytest.approx(value)


def test_official_scoring_keeps_the_letter_of_the_scripts():
  for protocol, truth, answer in [
    ('pope', 'yes', '**No**'),
    ('mme_score', 'No', 'There is no cat'),
  ]:
    entry = {'gt_answers': truth, 'answer': answer}
    ours, official = (PER_EXAMPLE[protocol]([entry], official=flag) for flag in (False, True))
    assert ours != official


WIDTH, HEIGHT, TRUTH = 60, 40, (10, 5, 40, 30)
THOUSANDTHS = '167, 125, 667, 750'
MARKED = {
  'percent': '[16.7%, 25%, 66.7%, 66.7%]',
  'percent in a sentence': 'It spans (16.7%, 25%) to (66.7 %, 66.7 %).',
  'pixels': '[10px, 5px, 40px, 30px]',
  'Qwen-VL': '<ref>cat</ref><box>(167,125),(667,750)</box>',
  'Qwen2-VL': '<|object_ref_start|>cat<|object_ref_end|>'
  '<|box_start|>(167,125),(667,750)<|box_end|>',
  'InternVL': f'cat<box>[[{THOUSANDTHS}]]</box>',
  'DeepSeek-VL2': f'<|ref|>cat<|/ref|><|det|>[[{THOUSANDTHS}]]<|/det|>',
  'Kosmos-2': '<phrase>cat</phrase><object><patch_index_0133><patch_index_0757></object>',
  'Florence-2': 'cat<loc_167><loc_125><loc_667><loc_750>',
  'PaliGemma': '<loc0128><loc0171><loc0768><loc0683> cat',
  'MiniGPT-v2': '{<17><12><67><75>}',
  'round brackets': '(0.167, 0.25, 0.667, 0.667)',
  'two points': '(0.167, 0.25), (0.667, 0.667)',
  'names': 'x1: 0.167, y1: 0.25, x2: 0.667, y2: 0.667',
  'JSON': '{"bbox_2d": [0.167, 0.25, 0.667, 0.667], "label": "cat 2"}',
  'spaces': '**[0.167 0.25 0.667 0.667]**',
  'pixels in words': '[10 pixels, 5 pixels, 40 pixels, 30 pixels]',
  'a unit behind': '[10, 5, 40, 30] px',
  'GLM-4.5V': f'<|begin_of_box|>[[{THOUSANDTHS}]]<|end_of_box|>',
  'tokens with spaces': '<loc0128> <loc0171> <loc0768> <loc0683> cat',
  'names of pixels': "{'xmin': '10px', 'xmax': '40px', 'ymin': '5px', 'ymax': '30px'}",
  'ranges': 'xmin=0.167, xmax=0.667, ymin=0.25, ymax=0.667',
  'a width': '{"x": 0.167, "y": 0.25, "w": 0.5, "h": 0.417}',
  'width and height': '{"x": 16.7%, "y": 25%, "width": 50%, "height": 41.7%}',
  'a thought': '<think>[0, 0, 0.1, 0.1]?</think>[0.167, 0.25, 0.667, 0.667]',
}


@pytest.mark.parametrize('form', MARKED)
def test_boxes_with_a_mark_of_their_scale_are_converted(form):
  box = box_forms.first_box(MARKED[form], WIDTH, HEIGHT)
  assert boxes.iou(box, boxes.pad_box(TRUTH, WIDTH, HEIGHT)) > 0.9


def test_labels_stay_with_their_boxes():
  answer = (
    '<ref>cat</ref><box>(167,125),(667,750)</box> and <ref>dog</ref><box>(0,0),(500,500)</box>'
  )
  entry = {'answer': answer, 'width': WIDTH, 'height': HEIGHT, 'image_id': 1}
  entry['objects'] = [
    {'name': name, 'bbox': box, 'area': 600, 'iscrowd': 0}
    for name, box in [('cat', [10, 5, 30, 25]), ('dog', [0, 0, 30, 20])]
  ]
  assert PER_EXAMPLE['coco_ap']([entry]) == [1]


def rec(answer, **more):
  return {
    'answer': answer,
    'question_id': f'height{HEIGHT}_width{WIDTH}',
    'gt_answers': list(TRUTH),
  } | more


def test_boxes_without_a_mark_are_scored_as_they_are_and_counted():
  entries = [rec(text) for text in (f'[{THOUSANDTHS}]', '[10, 5, 40, 30]', '[0.1, 0.2, 0.3]', 'no')]
  entries.append(rec('[0.1, 0.2, 0.5, 0.6, 0.9]'))
  entries += [
    rec('[0.667, 0.667, 0.167, 0.25]'),
    rec('[−0.1, 0.25, −0.1, 0.6]'),
    rec('<box></box>'),
  ]
  assert PROTOCOLS['miou0.5'](entries) == {'miou0.5': 0}
  counts = {'without a box': 4, box_forms.EMPTY: 2, box_forms.UNKNOWN_SCALE: 2}
  assert UNREAD['miou0.5'](entries) == counts
  benchmark = base.Benchmark('refcoco_val', (), '', 30, 'miou0.5', False, {})
  table = scores.table({'refcoco_val': scores.result(benchmark, entries)})
  assert 'refcoco_val: 2 of 8 answers with numbers above 1 and no mark of their scale' in table


def test_a_benchmark_may_name_the_form_of_boxes(tmp_path):
  for form, answer in {
    'pixels': '[10, 5, 40, 30]',
    'thousandths': f'[{THOUSANDTHS}]',
    'image': '[0.167, 0.125, 0.667, 0.75]',
  }.items():
    for text in (answer, answer.strip('[]'), MARKED['Qwen-VL']):
      assert PER_EXAMPLE['miou0.5']([rec(text, boxes=form)]) == [1]
  settings = dict(reader='pope', protocol='miou0.5', prompt='{}', max_new_tokens=3, boxes='pixel')
  with pytest.raises(SphinxError, match="did you mean 'pixels'"):
    base.open_benchmark('mine', settings, tmp_path)


def test_answers_from_which_nothing_is_read_are_counted():
  benchmark = base.Benchmark('sqa', (), '', 30, 'accuracy', False, {'metric': 'accuracy'})
  entries = [QUESTION | {'answer': text} for text in ('B', '', 'A or B')]
  entries.append(QUESTION | {'answer': '', 'skipped': 'missing image'})
  unread = scores.result(benchmark, entries)['unread']
  assert unread == {'empty': 1, 'without one choice': 2}
  entries = [{'gt_answers': 'no', 'answer': text} for text in ('Not sure', 'No', 'maybe')]
  assert UNREAD['mme_score'](entries) == {'neither yes nor no': 2}


PIECES = [
  *(text for names in (*RIGHT.values(), *WRONG.values()) for text in names),
  *MARKED.values(),
  *(text for text in texts.HOSTILE.values() if len(text) < 600),
  *(
    '</think>',
    '<think>',
    '<box>',
    '</box>',
    '<loc_1>',
    '<loc0001>',
    '%',
    'px',
    '{"x": 1, "y":',
    '-',
  ),
  *(
    '9999',
    '1e999',
    '[',
    ']',
    '; ',
    'not ',
    'A or ',
    '\\boxed{',
    '}',
    '\n',
    '"',
    "'",
    '١',
    '½',
    '²',
  ),
]


@pytest.mark.parametrize('count', [40, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize('protocol', sorted(PER_EXAMPLE))
def test_any_answer_has_a_score(protocol, count):
  rng = random.Random(protocol)
  sized = {'width': WIDTH, 'height': HEIGHT, 'image_id': 1}
  thing = {'name': 'cat', 'bbox': [10, 5, 30, 25], 'area': 750, 'iscrowd': 0}
  person = {'keypoints': [5, 5, 2] * 17, 'bbox': [10, 5, 30, 25], 'area': 750, 'num_keypoints': 17}
  entries = {
    'miou0.5': rec(''),
    'coco_ap': sized | {'objects': [thing]},
    'coco_oks': sized | {'person': person | {'iscrowd': 0}},
    'phrase_grounding': sized | {'gt_answers': [list(TRUTH)]},
    'caption': {'gt_answers': ['a red cat', 'cats']},
    'relaxed_accuracy': {'gt_answers': '45%'},
  } | {name: entry for name, entry in BENCHMARKS.values()}
  for _ in range(count):
    answer = ''.join(rng.choices(PIECES, k=rng.randrange(8)))
    entry = entries[protocol] | {'answer': answer}
    for official in (False, True):
      (score,) = PER_EXAMPLE[protocol]([entry], official=official)
      assert score is None or 0 <= score <= 1, answer
    if protocol in UNREAD:
      assert set(UNREAD[protocol]([entry]).values()) <= {0, 1}
