"""Stage 2 on a pod: all tasks jointly, from the mixed weights of stage 1.

    python -m sphinx_jax.mix_weights --inputs=workdir/real,workdir/synthetic --coefficients=0.5,0.5 --output=workdir/mix
    python -m sphinx_jax.train --config=configs/stage2.py:13b,1k --workdir=workdir/stage2

The argument: 7b or 13b; 224, 1k or 2k. Every task is one file in the official format, data/NAME.jsonl, on a slice too
(`--data` of launch/tpu_queued.sh brings them there). The tasks are the paper's; weights, rows a batch and the number of
steps are ours.

What to expect of the smallest v5p slice, as `plan` says: bytes are the compiler's, times suppose 40 % MFU and fall with the
number of chips. The slices of other kinds: README "Will it fit".

    argument  slice   GiB a device  a step  whole run
    7b,224    v5p-8           75.5    17 s     6 days
    7b,1k     v5p-8           75.7    16 s     6 days
    7b,2k     v5p-16          64.2    17 s     6 days
    13b,224   v5p-16          62.1    15 s     5 days
    13b,1k    v5p-16          62.0    15 s     5 days
    13b,2k    v5p-32          45.0    16 s     5 days
"""

from ml_collections import ConfigDict

from configs import pod

# Task -> (file, share of examples).
TASKS = {
    'vqa': ('vqa.jsonl', 0.22),                            # VQAv2, GQA, OKVQA, A-OKVQA
    'ocr': ('ocr.jsonl', 0.08),                            # OCR-VQA, TextCaps
    'rec': ('rec.jsonl', 0.12), 'reg': ('reg.jsonl', 0.10),  # RefCOCO, RefCOCO+, RefCOCOg, Visual Genome
    'grounded_caption': ('grounded_caption.jsonl', 0.06),  # Flickr30k Entities
    'detection': ('detection.jsonl', 0.10),                # COCO, LVIS
    'relation': ('relation.jsonl', 0.06),                  # Visual Genome
    'layout': ('layout.jsonl', 0.04),                      # DocLayNet
    'pose': ('pose.jsonl', 0.04),                          # COCO keypoints
    'dialog': ('dialog.jsonl', 0.12),                      # LLaVA, ShareGPT
    'text': ('text.jsonl', 0.06),                          # instructions without a picture
}


def get_config(arg: str = '') -> ConfigDict:
    """The config of one run; `arg` as above, '13b,1k' by default."""
    choice = pod.parse(arg, '13b,1k', 'stage2.py')
    mixture = {task: pod.jsonl(path, weight, task) for task, (path, weight) in TASKS.items()}
    validation = {task: pod.jsonl(f'validation/{path}', 1.0, task) for task, (path, _) in TASKS.items()}
    return pod.run(f'stage2_{choice.size}_{choice.scale}', choice, mixture, validation, rows=128, steps=30_000, lr=2e-5,
                   decay_to=0.0, warmup=900, init_from='workdir/mix').lock()
