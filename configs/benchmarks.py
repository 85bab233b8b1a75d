"""The published benchmarks: their prompts, how they are scored, and SPHINX's published results.

    python -m sphinx_jax.evaluate --checkpoint=DIR --benchmarks=refcoco_val,mme --root=DIR

Paths are relative to --root, which has data/ and annotations/ as in the official repository
(LLaMA2-Accessory, accessory/eval_mm). The docstring of each reader
(sphinx_jax/evaluation/benchmarks) shows its tree. Names, prompts and lengths are those of the
official annotation_config.json, or of `_own_rows` for benchmarks that it lacks. Its DeepForm,
InfographicsVQA, KleisterCharity, TabFact, VisualMRC and WikiTableQuestions are left out: their
scorer ('ureader') belongs to the DUE benchmark and was not available.

`published` is the result of SPHINX-2k (762 pixels, 1 + 9 views; arXiv 2311.07575), in percent
except for MME. The paper's own tables were not available. Each number is the one that two later
papers cite:

    VQAv2 (test-dev), OKVQA       arXiv 2404.07204 (BRAVE), arXiv 2311.03079 (CogVLM)
    GQA, VizWiz (test)            BRAVE, arXiv 2403.11703 (LLaVA-UHD)
    TextVQA, MMBench, SEED-Bench  CogVLM, LLaVA-UHD
    ScienceQA                     CogVLM, arXiv 2501.03895 (LLaVA-Mini)
    MME                           LLaVA-Mini; LLaVA-UHD has 1470.7
    RefCOCO, RefCOCO+, RefCOCOg   arXiv 2404.13046 (MoVA), arXiv 2404.07973 (Ferret-v2)

`styles` has prompts of other models, by the name of their dialog template (data/dialog.py). Those
of Idefics2 are from VLMEvalKit (vlmeval/vlm/idefics.py, 0176e46), which has none for VQAv2, OKVQA,
GQA, VizWiz and POPE; there, and where the annotation file has a whole prompt, SPHINX's is used.

A number that fewer papers cite is None. No released weights could be run here, so no row has a
result of this project.
"""

import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from sphinx_jax.core import errors
from sphinx_jax.tasks import caption, detection, layout, pose, rec
from sphinx_jax.tasks.questions import UNANSWERABLE_INSTRUCTION
from sphinx_jax.tasks.task import SHORT_ANSWER

NOT_RUN = 'not run here'
# The prompts below are the first instruction of each task, which is the official one if there is
# one.
REC = rec.INSTRUCTIONS[0]
CAPTION = caption.INSTRUCTIONS[0]
DETECTION = detection.INSTRUCTIONS[0]
LAYOUT = layout.INSTRUCTIONS[0]
POSE = pose.INSTRUCTIONS[0]
BRIEF = {'idefics2': dict(prompt='{}\nGive a very brief answer.')}
_CHOICES = 'Question: {question}\n{hint}Choices:\n{choices}\nAnswer with '
CHOICE = {'idefics2': dict(prompt=_CHOICES + 'the letter.', prefix=' Answer:')}
MMBENCH = {'idefics2': dict(prompt=_CHOICES + 'a letter.', prefix=' Answer:')}


def _row(
  reader: str,
  protocol: str,
  metric: str,
  prompt: str = SHORT_ANSWER,
  max_new_tokens: int = 10,
  published: float | None = None,
  note: str = '',
  prefix: str = '',
  hidden: bool = False,
  styles: Mapping[str, Mapping[str, str]] = types.MappingProxyType({}),
  **own: Any,
) -> dict[str, Any]:
  """Returns the row of a benchmark.

  Args:
    reader: name in evaluation/benchmarks/benchmark.py.
    protocol: name in evaluation/protocols.
    metric: the number of the protocol that represents the benchmark.
    prompt: instruction with '{}' for the question.
    max_new_tokens: length of the longest answer.
    published: the published result.
    note: a remark.
    prefix: the beginning of every answer.
    hidden: whether the answers are hidden.
    styles: dialog template -> prompt and prefix for models with it, in place of the row's.
    own: arguments of the reader, and `boxes`, the form of boxes in answers (key of
      evaluation/protocols/box_forms.FORMS).
  """
  return dict(
    reader=reader,
    protocol=protocol,
    metric=metric,
    prompt=prompt,
    styles=dict(styles),
    prefix=prefix,
    max_new_tokens=max_new_tokens,
    published=published,
    variant='SPHINX-2k',
    note=f'{NOT_RUN}; {note}' if note else NOT_RUN,
    hidden=hidden,
    **own,
  )


def _official(file: str, protocol: str, metric: str = '', **more: Any) -> dict[str, Any]:
  """Returns the row of a benchmark with an official annotation file.

  Its metric has the name of the protocol, except for MME.
  """
  return _row('annotations', protocol, metric or protocol, file=f'annotations/{file}.json', **more)


def _annotators(file: str, *annotation: str, **more: Any) -> dict[str, Any]:
  """Returns the row of a benchmark that is scored against the answers of all annotators.

  They are in a file of the dataset, the first of `annotation` that exists.
  """
  return _official(file, 'vqa_score', annotation=annotation, **more)


def _rec(file: str, published: float) -> dict[str, Any]:
  return _official(
    file, 'miou0.5', prompt=REC, max_new_tokens=30, published=published, boxes='square'
  )


def _pope(subset: str) -> dict[str, Any]:
  return _row(
    'pope',
    'pope',
    'f1',
    file=f'data/pope/coco_pope_{subset}.json',
    images='data/coco/val2014',
    note='87.2 is cited for SPHINX-2k without saying which subset or number',
  )


def _official_rows() -> dict[str, dict[str, Any]]:
  """The benchmarks of the official annotation_config.json, under its names."""
  return dict(
    mme=_official(
      'MME_benchmark', 'mme_score', metric='perception', published=1470.6, styles=BRIEF
    ),
    okvqa_val=_annotators(
      'okvqa_val', 'data/okvqa/mscoco_val2014_annotations.json', published=62.6
    ),
    gqa_testdev=_official('gqa_testdev_balanced', 'gqa_accuracy', published=63.1),
    vqav2_val=_annotators('vqav2_val', 'data/vqav2/v2_mscoco_val2014_annotations.json'),
    textvqa_val=_annotators(
      'textvqa_val',
      'data/textvqa/textvqa_val_annotations.json',
      'data/textvqa/TextVQA_0.5.1_val.json',
      published=61.2,
      styles=BRIEF,
    ),
    vsr_val=_official('vsr_val', 'accuracy', prompt='{}'),
    vizwiz_val=_annotators(
      'vizwiz_val',
      'data/vizwiz/vizwiz_val_annotations.json',
      'data/vizwiz/val.json',
      prompt=UNANSWERABLE_INSTRUCTION,
    ),
    docvqa_val=_official(
      'docvqa_val',
      'anls',
      max_new_tokens=32,
      annotation='data/docvqa/val/val_v1.0.json',
      styles=BRIEF,
    ),
    chartqa_test_human=_official('chartqa_test_human', 'relaxed_accuracy', styles=BRIEF),
    chartqa_test_augmented=_official('chartqa_test_augmented', 'relaxed_accuracy', styles=BRIEF),
    ocrvqa_val=_official('ocrvqa_val', 'accuracy', max_new_tokens=20, styles=BRIEF),
    ai2diagram=_official('ai2diagram_test', 'accuracy'),
    Qbench_dev=_official('Qbench_dev', 'accuracy', prompt='{}'),
    scienceqa_test=_official(
      'scienceqa_test_img', 'accuracy', prompt='{}', prefix=' The answer is', published=70.6
    ),
    refcoco_val=_rec('refcoco_val', 91.10),
    refcoco_testA=_rec('refcoco_testA', 92.88),
    refcoco_testB=_rec('refcoco_testB', 87.07),
    refcocog_val=_rec('refcocog_val', 88.07),
    refcocog_test=_rec('refcocog_test', 88.65),
    **{
      'refcoco+_val': _rec('refcoco+_val', 85.51),
      'refcoco+_testA': _rec('refcoco+_testA', 90.62),
      'refcoco+_testB': _rec('refcoco+_testB', 80.45),
    },
  )


def _own_rows() -> dict[str, dict[str, Any]]:
  """The other benchmarks.

  Their prompts are those that stage 2 trains with, or the official ones for similar questions.
  """
  coco = 'data/coco/annotations'
  return dict(
    mmmu_val=_official('MMMU_val_single', 'accuracy', prompt='{}'),
    pope_random=_pope('random'),
    pope_popular=_pope('popular'),
    pope_adversarial=_pope('adversarial'),
    mmbench_dev=_row(
      'mmbench',
      'mmbench',
      'accuracy',
      prompt='{}',
      styles=MMBENCH,
      published=65.9,
      note='which of its sets 65.9 is of is not cited',
      file=(
        'data/mmbench/mmbench_dev_20230712.tsv',
        'data/mmbench/mmbench_dev_en_20231003.tsv',
        'data/mmbench/MMBench_DEV_EN.tsv',
      ),
    ),
    seed_bench=_row(
      'seed_bench',
      'seed_bench',
      'accuracy',
      prompt='{}',
      styles=CHOICE,
      published=71.6,
      file='data/SEED_Bench/SEED-Bench.json',
      images='data/SEED_Bench/SEED-Bench-image',
    ),
    coco_detection_val2017=_row(
      'coco_objects',
      'coco_ap',
      'AP',
      DETECTION,
      1024,
      boxes='square',
      file=f'{coco}/instances_val2017.json',
      images='data/coco/val2017',
    ),
    coco_pose_val2017=_row(
      'coco_people',
      'coco_oks',
      'AP',
      POSE,
      384,
      file=f'{coco}/person_keypoints_val2017.json',
      images='data/coco/val2017',
    ),
    doclaynet_test=_row(
      'coco_objects',
      'coco_ap',
      'AP',
      LAYOUT,
      1024,
      boxes='square',
      file='data/doclaynet/COCO/test.json',
      images='data/doclaynet/PNG',
    ),
    coco_caption_karpathy_test=_row(
      'karpathy',
      'caption',
      'CIDEr',
      CAPTION,
      48,
      file='data/coco/dataset_coco.json',
      images='data/coco',
      split='test',
    ),
    coco_caption_val2017=_row(
      'coco_captions',
      'caption',
      'CIDEr',
      CAPTION,
      48,
      file=f'{coco}/captions_val2017.json',
      images='data/coco/val2017',
    ),
    nocaps_val=_row(
      'coco_captions',
      'caption',
      'CIDEr',
      CAPTION,
      48,
      file='data/nocaps/nocaps_val_4500_captions.json',
      images='data/nocaps/val',
    ),
    flickr30k_grounding_test=_row(
      'flickr30k',
      'phrase_grounding',
      'recall@1 any box',
      REC,
      30,
      boxes='square',
      folder='data/flickr30k_entities',
      split='test',
    ),
    vqav2_testdev=_row(
      'vqav2_questions',
      'vqa_score',
      'vqa_score',
      hidden=True,
      published=80.7,
      file='data/vqav2/v2_OpenEnded_mscoco_test-dev2015_questions.json',
      images='data/coco/test2015/COCO_test2015_',
    ),
    docvqa_test=_row(
      'docvqa_questions',
      'anls',
      'anls',
      hidden=True,
      max_new_tokens=32,
      styles=BRIEF,
      file='data/docvqa/test/test_v1.0.json',
      images='data/docvqa/test',
    ),
    vizwiz_test=_row(
      'vizwiz_questions',
      'vqa_score',
      'vqa_score',
      UNANSWERABLE_INSTRUCTION,
      hidden=True,
      published=44.9,
      file='data/vizwiz/test.json',
      images='data/vizwiz/test',
    ),
  )


def get_config(arg: str = '') -> ConfigDict:
  """Returns the table, {name: row}. `arg` must be empty."""
  if arg:
    raise errors.unknown('argument of configs/benchmarks.py', arg, [])
  return ConfigDict({**_official_rows(), **_own_rows()}).lock()
