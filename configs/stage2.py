"""Stage 2 on a pod: all tasks jointly, from the mixed weights of stage 1.

    python -m sphinx_jax.mix_weights --inputs=workdir/real,workdir/synthetic --coefficients=0.5,0.5 --output=workdir/mix
    python -m sphinx_jax.train --config=configs/stage2.py:13b,1k --workdir=workdir/stage2

The argument: 7b or 13b; 224, 1k or 2k. Slices, bytes a device and days: README "Will it fit" (`python -m sphinx_jax.plan
--config=configs/stage2.py:13b,1k --topology=v5p:4x4x4` prints them for any slice). Every task is one file in the official
format, data/NAME.jsonl. The tasks are the paper's; weights, rows a batch and the number of steps are ours.
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
