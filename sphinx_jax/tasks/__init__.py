"""Task families: each file has its instructions, its answer text, its parser and its metric.

The interface is described in task.py.
"""

from sphinx_jax.core.tables import Table

TASKS = Table(
  'task',
  {
    'caption': 'sphinx_jax.tasks.caption:TASK',
    'vqa': 'sphinx_jax.tasks.vqa:TASK',
    'ocr': 'sphinx_jax.tasks.ocr:TASK',
    'rec': 'sphinx_jax.tasks.rec:TASK',
    'reg': 'sphinx_jax.tasks.reg:TASK',
    'grounded_caption': 'sphinx_jax.tasks.grounded_caption:TASK',
    'detection': 'sphinx_jax.tasks.detection:TASK',
    'counting': 'sphinx_jax.tasks.counting:TASK',
    'relation': 'sphinx_jax.tasks.relation:TASK',
    'difference': 'sphinx_jax.tasks.difference:TASK',
    'layout': 'sphinx_jax.tasks.layout:TASK',
    'pose': 'sphinx_jax.tasks.pose:TASK',
    'dialog': 'sphinx_jax.tasks.dialog:TASK',
    'text': 'sphinx_jax.tasks.text:TASK',
  },
)
