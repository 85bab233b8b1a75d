"""The table of protocols."""

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import EACH, PROTOCOLS


def test_every_protocol_is_there_and_refuses_an_empty_run():
  for name in PROTOCOLS:
    with pytest.raises(SphinxError, match='no entries'):
      PROTOCOLS[name]([])


def test_every_protocol_says_how_good_each_answer_is():
  assert list(EACH) == list(PROTOCOLS)
  for name in EACH:
    assert EACH[name]([]) == []


def test_an_unknown_metric_is_answered_with_the_nearest():
  with pytest.raises(SphinxError, match="did you mean 'relaxed_accuracy'"):
    PROTOCOLS['relaxed_acuracy']
