"""A bounded queue that is fair to its clients: each is served in turn, however much it asks."""

from collections import OrderedDict, deque
from typing import Generic, TypeVar

Item = TypeVar('Item')


class FairQueue(Generic[Item]):
  """First come, first served, among the items of one client; clients take turns.

  It is not safe for threads. Its length is the number of items of all clients.
  """

  def __init__(self) -> None:
    self._clients: OrderedDict[str, deque[Item]] = OrderedDict()
    self._length = 0

  def __len__(self) -> int:
    return self._length

  def push(self, client: str, item: Item) -> None:
    """Adds an item. A client without items waits behind the others' turns."""
    self._clients.setdefault(client, deque()).append(item)
    self._length += 1

  def pop(self) -> Item:
    """Takes the next item of the client whose turn it is. Raises KeyError if there is none."""
    client, items = self._clients.popitem(last=False)
    item = items.popleft()
    self._length -= 1
    if items:
      self._clients[client] = items
    return item

  def discard(self, client: str, item: Item) -> bool:
    """Removes an item that is no longer wanted. Returns whether it was in the queue."""
    items = self._clients.get(client, ())
    if item not in items:
      return False
    items.remove(item)
    self._length -= 1
    if not items:
      del self._clients[client]
    return True
