"""The paper's recipe on a pod: both domains of stage 1, the mix of their weights, stage 2.

    python -m sphinx_jax.recipe --config=configs/recipe.py:13b,1k --workdir=workdir/13b

The argument: 7b or 13b; the scale of stage 2 (224, 1k or 2k); stage 1 runs at 224. It starts from weights/fresh (see
configs/stage1.py) and reads data/*.jsonl, from the folder it is started in. configs/mini.py is the same recipe on a
laptop, with its own data and scores.

What to expect of the smallest v5p slice on which every stage fits, from the tables in stage1.py and stage2.py (at 40 %
MFU, nearly all of it in stage 1; four times the chips take a quarter):

    argument  slice   GiB a device  whole recipe
    7b,224    v5p-16          63.8       72 days
    7b,2k     v5p-16          64.2       75 days
    13b,1k    v5p-32          45.1       66 days
    13b,2k    v5p-32          45.1       69 days
"""

from ml_collections import ConfigDict

from sphinx_jax.configs import pod, stage1, stage2


def get_config(arg: str = '') -> ConfigDict:
  """The config of all steps; `arg` as above, '13b,1k' by default."""
  size, scale, mesh, _ = pod.parse(arg, '13b,1k', 'recipe.py')
  stages = dict(
    real=stage1.get_config(f'{size},224,{mesh},real'),
    synthetic=stage1.get_config(f'{size},224,{mesh},synthetic'),
    stage2=stage2.get_config(f'{size},{scale},{mesh}'),
  )
  sections = {name: dict(kind='train', **stage.to_dict()) for name, stage in stages.items()}
  sections['synthetic']['init_from'], sections['stage2']['init_from'] = 'real', 'mix'
  sections['mix'] = dict(
    kind='mix', inputs=('real', 'synthetic'), coefficients=tuple(i / 10 for i in range(11))
  )
  return ConfigDict(dict(steps=('real', 'synthetic', 'mix', 'stage2'), **sections)).lock()
