"""The keys of a mixture entry, for every source."""

import pytest
from ml_collections import ConfigDict

from sphinx_jax import datasets, run
from sphinx_jax.core.errors import SphinxError

NEEDED = {'jsonl': 'path', 'data_config': 'path', 'miniworld': 'task'}


@pytest.mark.parametrize('source', [*datasets.SOURCES, *datasets.FAMILIES])
def test_a_mistyped_key_is_refused_by_every_source(source, tmp_path):
  entry = {'source': source, 'path': 'a', 'task': 'vqa', 'max_turn': 3}
  if NEEDED.get(source) != 'path':
    del entry['path']
  with pytest.raises(SphinxError, match="got 'max_turn'.*did you mean 'max_turns'"):
    datasets.open_source(entry, tmp_path)


@pytest.mark.parametrize('source, key', NEEDED.items())
@pytest.mark.parametrize('value', [{}, None, ''])
def test_a_missing_key_is_named(source, key, value, tmp_path):
  entry = {'source': source} | ({} if value == {} else {key: value})
  with pytest.raises(SphinxError, match=f"source '{source}': got an entry without '{key}'"):
    datasets.open_source(entry, tmp_path)


@pytest.mark.parametrize(
  'entry, message',
  [
    ({}, 'got source None'),
    ({'source': 7}, 'got source 7'),
    ({'source': 'jsonl', 'path': 7}, "source 'jsonl': got path 7, expected a text"),
    ({'source': 'coco', 'root': ['a']}, "source 'coco': got root"),
    (
      {'source': 'jsonl', 'path': 'a', 'image_root': '/x', 'too_lng': 'skip'},
      "got 'image_root'.*got 'too_lng'.*did you mean 'too_long'",
    ),
  ],
)
def test_a_wrong_entry_is_one_line(entry, message, tmp_path):
  with pytest.raises(SphinxError, match=message) as caught:
    datasets.open_source(entry, tmp_path)
  assert '\n' not in str(caught.value)


def test_the_entry_is_named():
  mixture = dict(mine=dict(source='jsonl', weight=1.0), other=dict(source='jsonl', path='a'))
  config = ConfigDict(dict(mixture=mixture, validation={}, data_dir=''))
  with pytest.raises(SphinxError) as caught:
    run.open_sources(config)
  mine, other = str(caught.value).split('\n')
  assert mine.startswith("mixture.mine: source 'jsonl': got an entry without 'path'")
  assert other.startswith('mixture.other: entry: got no weight')
