"""The task mix: proportions, coverage, randomness, and independence of the start position."""

import numpy as np
import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.mix.tasks import Mixture, shares, shuffle


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


@pytest.mark.parametrize(
  'weights, block, counts',
  [
    ((1, 1, 1), 10, (4, 3, 3)),
    ((0.5, 0.25, 0.25), 8, (4, 2, 2)),
    ((30, 0, 70), 10, (3, 0, 7)),
    ((0.15, 0.35, 0.5), 10, (2, 3, 5)),
  ],
)
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
  for values, picked_values in zip(whole, mixture.lookup(picked)):
    assert np.array_equal(values[picked], picked_values)


def test_hosts_that_stride_see_together_what_one_host_sees():
  mixture = Mixture((0.3, 0.7), (13, 40), seed=5, block=10)
  whole = np.stack(mixture.lookup(np.arange(400)))
  for hosts in (2, 4):
    parts = [np.stack(mixture.lookup(np.arange(host, 400, hosts))) for host in range(hosts)]
    assert np.array_equal(np.stack(parts, -1).reshape(3, 400), whole)


def test_seeds_give_other_orders():
  orders = [
    np.stack(Mixture((1, 1), (100, 100), seed=seed).lookup(np.arange(1000))) for seed in (0, 1, -1)
  ]
  assert not np.array_equal(orders[0][0], orders[1][0]) and not np.array_equal(
    orders[0][1], orders[1][1]
  )
  assert not np.array_equal(orders[0][1], orders[2][1])


def test_a_billion_examples_far_into_the_run():
  mixture = Mixture((0.5, 0.5), (10**9, 3 * 10**12), seed=1)
  task, example, epoch = mixture.lookup(10**13 + np.arange(1000))
  assert (epoch[task == 0] == 5000).all()
  for t in (0, 1):
    seen = example[task == t]
    assert len(set(seen)) == len(seen) and seen.min() >= 0 and seen.max() < mixture.sizes[t]
    # Spread over the whole range, not a run of neighbors.
    assert seen.std() > 0.2 * mixture.sizes[t]


def test_epochs_counts_what_lookup_gives():
  mixture = Mixture((0.3, 0, 0.7), (13, 0, 40), seed=5, block=10)
  for positions in (0, 10, 137, 1003):
    task, _, _ = mixture.lookup(np.arange(positions))
    expected = np.bincount(task, minlength=3) / np.array([13, 1, 40])
    assert mixture.epochs(positions) == pytest.approx(tuple(expected))


# Blocks of 10: two with the first weights, three with the second, all others with the third.
STAGED = Mixture((0.3, 0.7), (13, 40), seed=5, block=10, stages=[(20, (0.8, 0.2)), (41, (0, 1))])


def test_stages_change_the_shares_at_their_blocks():
  task, _, _ = STAGED.lookup(np.arange(100))
  assert (
    np.bincount(task[:20]).tolist() == [6, 14]
    and np.bincount(task[20:50]).tolist() == [24, 6]
    and task[50:].all()
  )
  assert [(position, counts) for position, _, counts in STAGED.stages] == [
    (0, (3, 7)),
    (20, (8, 2)),
    (50, (0, 10)),
  ]


def test_epochs_stay_whole_across_stages():
  task, example, epoch = STAGED.lookup(np.arange(3000))
  for t, size in enumerate(STAGED.sizes):
    of_task, epochs = example[task == t], epoch[task == t]
    assert (np.diff(epochs) >= 0).all()
    for e in range(epochs.max()):
      assert sorted(of_task[epochs == e]) == list(range(size))
  for positions in (0, 20, 37, 50, 1003):
    assert STAGED.epochs(positions) == pytest.approx(
      tuple(np.bincount(task[:positions], minlength=2) / (13, 40))
    )


def test_before_a_stage_the_order_is_that_without_it():
  plain = Mixture((0.3, 0.7), (13, 40), seed=5, block=10)
  assert np.array_equal(
    np.stack(STAGED.lookup(np.arange(20))), np.stack(plain.lookup(np.arange(20)))
  )


def test_stages_are_a_function_of_the_position_alone():
  whole = np.stack(STAGED.lookup(np.arange(400)))
  for hosts in (2, 4):
    parts = [np.stack(STAGED.lookup(np.arange(host, 400, hosts))) for host in range(hosts)]
    assert np.array_equal(np.stack(parts, -1).reshape(3, 400), whole)


def test_a_late_stage_of_a_billion_examples():
  mixture = Mixture((0.5, 0.5), (10**9, 3 * 10**9), seed=1, stages=[(10**12, (0.25, 0.75))])
  task, _, epoch = mixture.lookup(2 * 10**12 + np.arange(4096))
  assert np.bincount(task).tolist() == [1024, 3072]
  assert (epoch[task == 0] == 750).all() and (epoch[task == 1] == 416).all()


@pytest.mark.parametrize(
  'stages', [[(0, (1, 1))], [(2048, (1, 1)), (2000, (1, 2))], [(1500, (1, 1)), (1600, (1, 2))]]
)
def test_refuses_stages_out_of_order(stages):
  with pytest.raises(SphinxError, match='stages of the mixture: got positions'):
    Mixture((1, 2), (5, 5), stages=stages)


def test_a_stage_is_checked_like_the_beginning():
  with pytest.raises(SphinxError, match="task 'vqa': got weight 0.5 but 0 examples"):
    Mixture((1, 0), (5, 0), names=('rec', 'vqa'), stages=[(1024, (1, 0.5))])


@pytest.mark.parametrize(
  'rule, more, expected',
  [
    ('examples', {}, (0.25, 0.75)),
    ('tokens', {'tokens': (100, 300)}, (0.5, 0.5)),  # 1/100 beside 3/300
    ('temperature', {}, (1 / 31, 30 / 31)),  # 1 * 100 beside 3 * 1000
    ('temperature', {'caps': (None, 200)}, (1 / 7, 6 / 7)),  # 1 * 100 beside 3 * 200
    ('temperature', {'temperature': 2}, (10 / 104.868, 94.868 / 104.868)),
    ('temperature', {'temperature': 1e9}, (0.25, 0.75)),  # the weights alone
  ],
)
def test_what_a_weight_is_a_share_of(rule, more, expected):
  assert shares(rule, (1, 3), (100, 1000), **more) == pytest.approx(expected, rel=1e-5)


def test_shares_by_tokens_give_each_task_its_share_of_positions():
  weights, tokens = (0.2, 0.5, 0.3), (1600.0, 320.0, 45.0)
  positions = np.multiply(shares('tokens', weights, (9, 9, 9), tokens), tokens)
  assert positions / positions.sum() == pytest.approx(weights)


@pytest.mark.parametrize(
  'arguments, message',
  [
    (dict(rule='token'), "sampling by: got 'token'.*did you mean 'tokens'"),
    (dict(rule='temperature', temperature=0), 'got temperature 0'),
    (dict(rule='temperature', caps=(0, None)), 'expected positive numbers'),
    (dict(rule='temperature', sizes=(5, 0)), "task 'vqa': got weight 1 but 0 examples"),
  ],
)
def test_refuses_shares_that_cannot_be(arguments, message):
  with pytest.raises(SphinxError, match=message):
    shares(**dict(weights=(1, 1), sizes=(5, 5), names=('rec', 'vqa')) | arguments)


def test_all_empty_tasks_are_named_together():
  with pytest.raises(
    SphinxError,
    match="task 'rec': got weight 1 but 0 examples; task 'vqa': got weight 2 but 0 examples",
  ):
    Mixture((1, 2, 3), (0, 0, 5), names=('rec', 'vqa', 'ocr'))


@pytest.mark.parametrize(
  'weights, sizes, message',
  [
    (
      (0.3, 0.7),
      (0, 5),
      "task 'refcoco': got weight 0.3 but 0 examples, expected at least 1 example; "
      'check the path or set the weight to 0',
    ),
    ((-1, 1), (5, 5), "task 'refcoco': got weight -1"),
    ((float('nan'), 1), (5, 5), "task 'refcoco': got weight nan"),
    ((0, 0), (5, 5), 'only weights of 0'),
    ((1,), (5, 5), '1 weights and 2 sizes'),
    ((1e-6, 1), (5, 5), 'less than one example in a block of 1024'),
  ],
)
def test_refuses_a_mixture_that_cannot_be(weights, sizes, message):
  with pytest.raises(SphinxError, match=message):
    Mixture(weights, sizes, names=('refcoco', 'vqa'))


def test_weight_zero_needs_no_examples():
  task, _, _ = Mixture((0, 1), (0, 5)).lookup(np.arange(100))
  assert (task == 1).all()
