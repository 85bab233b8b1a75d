"""The paper's recipe on a pod: stage 1 in two domains, the mix of their weights, stage 2.

    python -m sphinx_jax.recipe --config=recipe:13b,1k --workdir=workdir/13b

Argument: the size (7b, 13b, moe) and the scale of stage 2 (224, 1k, 2k; 512, 1k of moe). Stage 1
runs at 224, of moe at 512.

The recipe starts from weights/fresh and reads the datasets under data/, both in the current
directory: configs/stage1.py and configs/stage2.py show how to make them. configs/mini.py is the
same recipe at laptop size, with a dataset of its own and with scores.

Hardware: the smallest v5p slice on which every stage fits, from the tables in stage1.py and
stage2.py. Times assume 40 % MFU. Nearly all of the time is stage 1. Four times the chips take a
quarter of it. Memory is that of the largest stage, in part estimated (~).

    argument  slice   GiB a device  whole recipe
    7b,224    v5p-8          ~73.8      144 days
    7b,2k     v5p-8           85.3      152 days
    13b,1k    v5p-16         ~84.9      132 days
    13b,2k    v5p-32          79.8       70 days
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import pod, stage1, stage2


def get_config(arg: str = '') -> ConfigDict:
  """Returns the config of all steps. The default of `arg` is '13b,1k'."""
  size, scale, mesh, _ = pod.parse(arg, '13b,1k', 'recipe')
  first = '224' if size in pod.DENSE else '512'
  stages = dict(
    real=stage1.get_config(f'{size},{first},{mesh},real'),
    synthetic=stage1.get_config(f'{size},{first},{mesh},synthetic'),
    stage2=stage2.get_config(f'{size},{scale},{mesh}'),
  )
  sections = {name: dict(kind='train', **stage.to_dict()) for name, stage in stages.items()}
  sections['synthetic']['init_from'] = 'real'
  sections['stage2']['init_from'] = 'mix'
  sections['mix'] = dict(
    kind='mix', inputs=('real', 'synthetic'), coefficients=tuple(i / 10 for i in range(11))
  )
  return ConfigDict(dict(steps=('real', 'synthetic', 'mix', 'stage2'), **sections)).lock()
