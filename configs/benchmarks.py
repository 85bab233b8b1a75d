"""The published benchmarks: what is asked, in which words, how it is scored, and what SPHINX is said to reach.

    python -m sphinx_jax.evaluate --checkpoint=DIR --benchmarks=refcoco_val,mme --root=DIR

Paths are relative to --root, in which data/ and annotations/ lie as in the official repository (LLaMA2-Accessory,
accessory/eval_mm); each reader's docstring (sphinx_jax/evaluation/benchmarks) shows its tree. Names, prompts and lengths are
those of the official annotation_config.json; what is not in it is under "Beside them". Its DeepForm, InfographicsVQA,
KleisterCharity, TabFact, VisualMRC and WikiTableQuestions are left out: their scorer ('ureader') belongs to the DUE
benchmark and is not at hand.

`published` is the figure of SPHINX-2k (762 pixels, 1 + 9 views; arXiv 2311.07575), in percent unless it is MME's. The paper's
own tables were not at hand; each figure is as two later papers cite it:

    VQAv2 (test-dev), OKVQA       arXiv 2404.07204 (BRAVE), arXiv 2311.03079 (CogVLM)
    GQA, VizWiz (test)            BRAVE, arXiv 2403.11703 (LLaVA-UHD)
    TextVQA, MMBench, SEED-Bench  CogVLM, LLaVA-UHD
    ScienceQA                     CogVLM, arXiv 2501.03895 (LLaVA-Mini)
    MME                           LLaVA-Mini; LLaVA-UHD has 1470.7
    RefCOCO, RefCOCO+, RefCOCOg   arXiv 2404.13046 (MoVA), arXiv 2404.07973 (Ferret-v2)

A figure found in fewer places is None. No released weights could be run here, so no row has a figure of ours.
"""

from ml_collections import ConfigDict

from sphinx_jax.core import errors

NOT_RUN = 'not run here'
SHORT = '{}\nAnswer the question using a single word or phrase.'
REC = 'Please provide the bounding box coordinate of the region this sentence describes: {}.'
CAPTION = 'Provide a one-sentence caption for the provided image.'


def _row(
  reader: str,
  protocol: str,
  metric: str,
  prompt: str = SHORT,
  max_new_tokens: int = 10,
  published: float | None = None,
  note: str = '',
  prefix: str = '',
  hidden: bool = False,
  **own,
) -> dict:
  """One benchmark. `metric` is the protocol's number that stands for it, `own` is what the reader takes."""
  return dict(
    reader=reader,
    protocol=protocol,
    metric=metric,
    prompt=prompt,
    prefix=prefix,
    max_new_tokens=max_new_tokens,
    published=published,
    variant='SPHINX-2k',
    note=f'{NOT_RUN}; {note}' if note else NOT_RUN,
    hidden=hidden,
    **own,
  )


def _official(file: str, protocol: str, **more) -> dict:
  """One that has an official annotation file; the protocol's own name is its number's, but for MME."""
  return _row(
    'annotations', protocol, more.pop('metric', protocol), file=f'annotations/{file}.json', **more
  )


def _annotators(file: str, *annotation: str, **more) -> dict:
  """One that is scored against all annotators, whose answers are in a file of the data set: any of those named."""
  return _official(file, 'vqa_score', annotation=annotation, **more)


def _rec(file: str, published: float) -> dict:
  return _official(file, 'miou0.5', prompt=REC, max_new_tokens=30, published=published)


def _pope(subset: str) -> dict:
  return _row(
    'pope',
    'pope',
    'f1',
    file=f'data/pope/coco_pope_{subset}.json',
    images='data/coco/val2014',
    note='87.2 is cited for SPHINX-2k without saying which subset or number',
  )


def _official_rows() -> dict:
  """What the official annotation_config.json has, under its names."""
  return dict(
    mme=_official('MME_benchmark', 'mme_score', metric='perception', published=1470.6),
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
    ),
    vsr_val=_official('vsr_val', 'accuracy', prompt='{}'),
    vizwiz_val=_annotators(
      'vizwiz_val',
      'data/vizwiz/vizwiz_val_annotations.json',
      'data/vizwiz/val.json',
      prompt="{} When the provided information is insufficient, respond with 'Unanswerable'.\n"
      'Answer the question using a single word or phrase.',
    ),
    docvqa_val=_official(
      'docvqa_val', 'anls', max_new_tokens=32, annotation='data/docvqa/val/val_v1.0.json'
    ),
    chartqa_test_human=_official('chartqa_test_human', 'relaxed_accuracy'),
    chartqa_test_augmented=_official('chartqa_test_augmented', 'relaxed_accuracy'),
    ocrvqa_val=_official('ocrvqa_val', 'accuracy', max_new_tokens=20),
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


def _own_rows() -> dict:
  """Beside them; their prompts are those the tasks of stage 2 train on, or the official ones for questions of that kind."""
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
      published=71.6,
      file='data/SEED_Bench/SEED-Bench.json',
      images='data/SEED_Bench/SEED-Bench-image',
    ),
    coco_detection_val2017=_row(
      'coco_objects',
      'coco_ap',
      'AP',
      'Detect all objects.',
      1024,
      file=f'{coco}/instances_val2017.json',
      images='data/coco/val2017',
    ),
    coco_pose_val2017=_row(
      'coco_people',
      'coco_oks',
      'AP',
      'Detect the keypoints of {}.',
      384,
      file=f'{coco}/person_keypoints_val2017.json',
      images='data/coco/val2017',
    ),
    doclaynet_test=_row(
      'coco_objects',
      'coco_ap',
      'AP',
      'Detect the document layout.',
      1024,
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
      file='data/docvqa/test/test_v1.0.json',
      images='data/docvqa/test',
    ),
  )


def get_config(arg: str = '') -> ConfigDict:
  """The table, {name: row}; it takes no argument."""
  if arg:
    raise errors.unknown('argument of configs/benchmarks.py', arg, [])
  rows = {**_official_rows(), **_own_rows()}
  rows['vizwiz_test'] = _row(
    'vizwiz_questions',
    'vqa_score',
    'vqa_score',
    rows['vizwiz_val']['prompt'],
    hidden=True,
    published=44.9,
    file='data/vizwiz/test.json',
    images='data/vizwiz/test',
  )
  return ConfigDict(rows).lock()
