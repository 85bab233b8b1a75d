"""DocLayNet: pages of documents with boxes of 11 kinds of blocks.

    root/             (DocLayNet_core.zip)
      COCO/train.json val.json test.json
      PNG/132a855ee8b23533d8ae69af0049c038171a06ddfcac892c3c6d7e6b4091c642.png ...

Pages are drawn as 1025 x 1025 pixels. CDLA-Permissive-1.0. https://github.com/DS4SD/DocLayNet
"""

from pathlib import Path

from sphinx_jax.datasets.coco_json import CocoJson
from sphinx_jax.datasets.family import Item
from sphinx_jax.datasets.fields import field
from sphinx_jax.datasets.files import find


class DocLayNet:
  """An item for each page with blocks; 'classes' are the names of all kinds."""

  TASKS = ('layout',)
  SPLITS = ('train', 'val', 'test')

  def __init__(self, root: Path, split: str, task: str, max_turns: int = 1):
    del task, max_turns  # One task, one item a page.
    self._file = CocoJson('doclaynet', find('doclaynet', root, f'COCO/{split}.json'))
    self._pictures = find('doclaynet', root, 'PNG')
    self._pages = list(self._file.annotations)

  def __len__(self) -> int:
    return len(self._pages)

  def item(self, index: int) -> Item:
    page = self._pages[index]
    blocks = [{'label': thing['name'], 'box': thing['box']} for thing in self._file.objects(page)]
    lists = {'blocks': blocks, 'classes': list(self._file.names.values())}
    return Item(
      str(page),
      self._pictures / field(self._file.image(page), 'file_name', str),
      self._file.about(page) | lists,
    )
