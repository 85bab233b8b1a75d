"""Task families: each file holds its instructions, its answer text, its parser and its metric (`base.py` says the contract)."""

from sphinx_jax.core.tables import Table

TASKS = Table('task', {
    'caption': 'sphinx_jax.data.tasks.caption:TASK',
    'vqa': 'sphinx_jax.data.tasks.vqa:TASK',
    'ocr': 'sphinx_jax.data.tasks.ocr:TASK',
    'rec': 'sphinx_jax.data.tasks.rec:TASK',
    'reg': 'sphinx_jax.data.tasks.reg:TASK',
    'grounded_caption': 'sphinx_jax.data.tasks.grounded_caption:TASK',
    'detection': 'sphinx_jax.data.tasks.detection:TASK',
    'counting': 'sphinx_jax.data.tasks.counting:TASK',
    'relation': 'sphinx_jax.data.tasks.relation:TASK',
    'layout': 'sphinx_jax.data.tasks.layout:TASK',
    'pose': 'sphinx_jax.data.tasks.pose:TASK',
    'dialog': 'sphinx_jax.data.tasks.dialog:TASK',
    'text': 'sphinx_jax.data.tasks.text:TASK',
})
