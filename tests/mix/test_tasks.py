"""The law of the task mix: proportions, coverage, randomness, and its independence of where one starts."""

import numpy as np
import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.mix.tasks import Mixture, shuffle


def _permutation(size, key):
  index = np.arange(size)
  return shuffle(index, np.full(size, size), np.full(size, key, np.uint64))


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 17, 64, 65, 1000])
def test_shuffle_is_a_bijection_of_any_size(size):
  for key in range(5):
    assert sorted(_permutation(size, key)) == list(range(size))


def test_shuffle_differs_by_key_and_spreads_evenly():
  landed = np.zeros((10, 10))
  for key in range(1000):
    landed[np.arange(10), _permutation(10, key)] += 1
  assert landed.min() > 60 and landed.max() < 140  # 100 expected, standard deviation 9.5


def test_a_mixture_of_one_example_each():
  task, example, epoch = Mixture((1, 1), (1, 1), block=4).lookup(np.arange(8))
  assert sorted(task[:4]) == sorted(task[4:]) == [0, 0, 1, 1]
  assert not example.any()
  assert [epoch[task == t].tolist() for t in (0, 1)] == [[0, 1, 2, 3]] * 2


@pytest.mark.parametrize('weights, block, counts', [
  ((1, 1, 1), 10, (4, 3, 3)),
  ((0.5, 0.25, 0.25), 8, (4, 2, 2)),
  ((30, 0, 70), 10, (3, 0, 7)),
  ((0.15, 0.35, 0.5), 10, (2, 3, 5)),
])
def test_every_block_holds_exactly_the_shares(weights, block, counts):
  mixture = Mixture(weights, (7, 50, 3), seed=2, block=block)
  assert mixture.counts == counts
  task, _, _ = mixture.lookup(np.arange(20 * block))
  for part in task.reshape(20, block):
    assert tuple(np.bincount(part, minlength=3)) == counts


def test_every_epoch_covers_each_example_once_in_another_order():
  mixture = Mixture((0.3, 0.7), (13, 40), seed=5, block=10)
  task, example, epoch = mixture.lookup(np.arange(2000))
  for t, size in enumerate(mixture.sizes):
    orders = [example[(task == t) & (epoch == e)] for e in range(4)]
    for order in orders:
      assert sorted(order) == list(range(size))
    assert not np.array_equal(orders[0], orders[1]) and not np.array_equal(orders[1], orders[2])
    assert (np.diff(epoch[task == t]) >= 0).all()


def test_lookup_is_a_function_of_the_position_alone():
  mixture = Mixture((0.3, 0.7), (13, 40), seed=5, block=10)
  whole = mixture.lookup(np.arange(500))
  picked = np.random.default_rng(0).permutation(500)[:100]
  for all_values, some in zip(whole, mixture.lookup(picked)):
    assert np.array_equal(all_values[picked], some)


def test_hosts_that_stride_see_together_what_one_host_sees():
  mixture = Mixture((0.3, 0.7), (13, 40), seed=5, block=10)
  whole = np.stack(mixture.lookup(np.arange(400)))
  for hosts in (2, 4):
    parts = [np.stack(mixture.lookup(np.arange(host, 400, hosts))) for host in range(hosts)]
    assert np.array_equal(np.stack(parts, -1).reshape(3, 400), whole)


def test_seeds_give_other_orders():
  orders = [np.stack(Mixture((1, 1), (100, 100), seed=seed).lookup(np.arange(1000))) for seed in (0, 1, -1)]
  assert not np.array_equal(orders[0][0], orders[1][0]) and not np.array_equal(orders[0][1], orders[1][1])
  assert not np.array_equal(orders[0][1], orders[2][1])


def test_a_billion_examples_far_into_the_run():
  mixture = Mixture((0.5, 0.5), (10**9, 3 * 10**12), seed=1)
  task, example, epoch = mixture.lookup(10**13 + np.arange(1000))
  assert (epoch[task == 0] == 5000).all()
  for t in (0, 1):
    seen = example[task == t]
    assert len(set(seen)) == len(seen) and seen.min() >= 0 and seen.max() < mixture.sizes[t]
    assert seen.std() > 0.2 * mixture.sizes[t]  # Spread over the whole range, not a run of neighbours.


def test_epochs_counts_what_lookup_gives():
  mixture = Mixture((0.3, 0, 0.7), (13, 0, 40), seed=5, block=10)
  for positions in (0, 10, 137, 1003):
    task, _, _ = mixture.lookup(np.arange(positions))
    want = np.bincount(task, minlength=3) / np.array([13, 1, 40])
    assert mixture.epochs(positions) == pytest.approx(tuple(want))


@pytest.mark.parametrize('weights, sizes, message', [
  ((0.3, 0.7), (0, 5), "task 'refcoco': got weight 0.3 but 0 examples, expected at least 1 example; "
                       "check the path or set the weight to 0"),
  ((-1, 1), (5, 5), "task 'refcoco': got weight -1"),
  ((float('nan'), 1), (5, 5), "task 'refcoco': got weight nan"),
  ((0, 0), (5, 5), 'only weights of 0'),
  ((1,), (5, 5), '1 weights and 2 sizes'),
  ((1e-6, 1), (5, 5), 'less than one example in a block of 1024'),
])
def test_refuses_a_mixture_that_cannot_be(weights, sizes, message):
  with pytest.raises(SphinxError, match=message):
    Mixture(weights, sizes, names=('refcoco', 'vqa'))


def test_weight_zero_needs_no_examples():
  task, _, _ = Mixture((0, 1), (0, 5)).lookup(np.arange(100))
  assert (task == 1).all()
