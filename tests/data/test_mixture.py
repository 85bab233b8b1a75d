"""The sampling section of a config becomes the order of examples, and a table."""

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.data import mixture
from sphinx_jax.data.record import BadExample


class Sized:
  """A source that is never read. Example i has `i % 3 + mean - 1` positions, unless it is bad."""

  def __init__(self, name, size, mean=10, bad=lambda index: False):
    self.name, self._size, self._mean, self._bad = name, size, mean, bad

  def __len__(self):
    return self._size

  def length(self, index):
    if self._bad(index):
      raise BadExample('missing image', f'{index} is not there')
    return index % 3 + self._mean - 1


def _make(sources, weights, settings=None, caps=None):
  sources = {source.name.split('.')[0]: source for source in sources}
  opened = list(sources.values())
  return mixture.make_sampling(
    sources,
    dict(zip(sources, weights)),
    0,
    settings,
    caps,
    lambda task, index: opened[task].length(index),
    threads=2,
  )


def _cells(sampling, position=0):
  return [
    [cell.strip() for cell in line.split('  ') if cell.strip()]
    for line in sampling.table(position).splitlines()
  ]


def test_shares_are_of_examples_by_default():
  sampling = _make([Sized('a.json', 10), Sized('b.json', 1000)], [1, 3])
  assert sampling.mixture.counts == (256, 768) and sampling.tokens is None
  assert _cells(sampling, 1024) == [
    ['task', 'source', 'examples', 'weight', 'share', 'epochs'],
    ['a', 'a.json', '10', '1', '0.250', '25.60'],
    ['b', 'b.json', '1,000', '3', '0.750', '0.77'],
  ]


def test_a_small_share_of_an_epoch_is_not_zero():
  sampling = _make([Sized('a', 10), Sized('b', 10**6)], [1, 1])
  assert [row[-1] for row in _cells(sampling, 100)[1:]] == ['5.70', '4.3e-05']
  assert [row[-1] for row in _cells(sampling)[1:]] == ['0.00', '0.00']


def test_weights_by_tokens_are_divided_by_the_mean_length():
  sampling = _make([Sized('a', 63, mean=30), Sized('b', 63, mean=10)], [1, 1], {'by': 'tokens'})
  assert sampling.tokens == pytest.approx((30, 10), abs=0.2)
  assert sampling.mixture.counts == (256, 768)
  assert _cells(sampling)[0][-2:] == ['tokens', 'epochs'] and _cells(sampling)[1][-2:] == [
    '30',
    '0.00',
  ]


def test_lengths_are_measured_all_over_a_source_on_readable_examples():
  long = Sized('a', 10**9, mean=10, bad=lambda index: index % 2 or index < 10**8)
  long.length = lambda index, read=long.length: read(index) * (2 if index > 5 * 10**8 else 1)
  sampling = _make([long, Sized('b', 3)], [1, 1], {'by': 'tokens'})
  assert 14 < sampling.tokens[0] < 17 and sampling.tokens[1] == 10
  with pytest.raises(
    SphinxError, match="task 'a': got none readable of 3 examples looked at .0 is not there."
  ):
    _make([Sized('a', 3, bad=lambda index: True), Sized('b', 3)], [1, 1], {'by': 'tokens'})


def test_a_task_without_weight_is_not_measured():
  sampling = _make([Sized('a', 5), Sized('b', 3, bad=lambda index: True)], [1, 0], {'by': 'tokens'})
  assert sampling.mixture.counts == (1024, 0)


def test_sizes_and_caps_decide_by_temperature():
  def counts(caps=None, **more):
    return _make(
      [Sized('a', 100), Sized('b', 10_000)], [1, 1], {'by': 'temperature', **more}, caps
    ).mixture.counts

  assert counts() == (10, 1014)
  assert counts({'b': 300}) == (256, 768)
  assert counts({'b': 900}, temperature=2) == (256, 768)


def test_a_stage_changes_the_weights_that_it_names():
  sampling = _make(
    [Sized('a', 10), Sized('b', 10), Sized('c', 10)],
    [2, 1, 1],
    {'stages': ((1000, {'a': 0.0, 'c': 3}), (5000, {'c': 0}))},
  )
  assert sampling.mixture.stages == (
    (0, (0.5, 0.25, 0.25), (512, 256, 256)),
    (1024, (0, 0.25, 0.75), (0, 256, 768)),
    (5120, (0, 1, 0), (0, 1024, 0)),
  )
  assert _cells(sampling)[0] == [
    'task',
    'source',
    'examples',
    'weight',
    'share',
    'from 1,024',
    'from 5,120',
    'epochs',
  ]
  assert _cells(sampling)[2][3:7] == ['1', '0.250', '0.250', '1.000']


def test_learned_weights_begin_after_the_window_in_use():
  first = mixture.add_stage((), 1, 256, {'a': 1.0})
  assert first == ((1024, {'a': 1.0}),)
  # As long as no example of the block is packed, later weights take their place.
  assert mixture.add_stage(first, 1024, 256, {'a': 2.0}) == ((1024, {'a': 2.0}),)
  assert mixture.add_stage(first, 1025, 256, {'a': 2.0}) == (*first, (2048, {'a': 2.0}))
  # A window that ends inside a block.
  assert mixture.add_stage(first, 1000, 1000, {'a': 2.0}) == ((1024, {'a': 2.0}),)
  assert mixture.add_stage(first, 1001, 1000, {'a': 2.0}) == (*first, (2048, {'a': 2.0}))


def test_a_learned_mixture_begins_with_its_weights_as_shares_of_examples():
  learned = _make([Sized('a', 10), Sized('b', 10)], [3, 1], {'by': 'learned', 'learned': {}})
  assert learned.mixture.counts == (768, 256)


def test_stages_by_tokens():
  sampling = _make(
    [Sized('a', 9, mean=30), Sized('b', 9)], [1, 0], {'by': 'tokens', 'stages': ((1024, {'b': 1}),)}
  )
  assert [counts for _, _, counts in sampling.mixture.stages] == [(1024, 0), (256, 768)]


@pytest.mark.parametrize(
  'settings, caps, message',
  [
    ({'by': 'token'}, None, "sampling by: got 'token'.*did you mean 'tokens'"),
    ({'temprature': 2}, None, "setting of sampling: got 'temprature'.*did you mean 'temperature'"),
    ({'temperature': 2.0}, None, "by 'examples' with temperature 2, expected by 'temperature'"),
    (None, {'a': 5}, r"by 'examples' with caps of \['a'\]"),
    ({'by': 'temperature'}, {'a': 0}, 'expected positive numbers'),
    ({'stages': ((5000, {'rce': 1}),)}, None, "task of the stage at 5,000: got 'rce'"),
    ({'by': 'tokens', 'stages': ((5000, {'a': -1}),)}, None, "task 'a': got weight -1"),
  ],
)
def test_refuses_settings_that_do_not_fit(settings, caps, message):
  with pytest.raises(SphinxError, match=message):
    _make([Sized('a', 5), Sized('b', 5)], [1, 1], settings, caps)


@pytest.mark.parametrize(
  'settings', [None, {'by': 'tokens'}, {'by': 'temperature', 'temperature': 2}]
)
def test_all_empty_sources_are_named_together(settings):
  with pytest.raises(
    SphinxError,
    match="task 'a .a.json.': got weight 1 but 0 examples; task 'b': got weight 2 but 0 ex",
  ):
    _make([Sized('a.json', 0), Sized('b', 0), Sized('c', 5)], [1, 2, 3], settings)
