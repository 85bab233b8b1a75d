"""DocLayNet: pages of documents with boxes of 11 kinds of blocks.

    root/             (DocLayNet_core.zip)
      COCO/train.json val.json test.json
      PNG/132a855ee8b23533d8ae69af0049c038171a06ddfcac892c3c6d7e6b4091c642.png ...

Pages are rendered as 1025 x 1025 pixels.
Licence: CDLA-Permissive-1.0.
Homepage: https://github.com/DS4SD/DocLayNet
"""

from sphinx_jax.datasets.coco_json import CocoJson
from sphinx_jax.datasets.family import Family, Item
from sphinx_jax.datasets.fields import field


class DocLayNet(Family):
  """An item for each page with blocks. 'classes' are the names of all kinds."""

  NAME = 'doclaynet'
  TASKS = ('layout',)
  SPLITS = ('train', 'val', 'test')

  def _open(self) -> None:
    self._file = CocoJson(self._who(), self._find(f'COCO/{self.split}.json'))
    self._images = self._find('PNG')
    self._pages = list(self._file.annotations)

  def __len__(self) -> int:
    return len(self._pages)

  def item(self, index: int) -> Item:
    """Raises BadExample ('malformed record', 'unknown image', 'duplicate id')."""
    page = self._pages[index]
    objects = self._file.objects(page)
    annotation = {
      'blocks': [{'label': thing['name'], 'box': thing['box']} for thing in objects],
      'classes': list(dict.fromkeys(self._file.names.values())),
    }
    file_name = field(self._file.image(page), 'file_name', str)
    return Item(
      str(page), (self._images / file_name,), self._file.size_annotation(page) | annotation
    )
