"""The table of protocols."""

import pytest

from sphinx_jax.core.errors import SphinxError
from sphinx_jax.evaluation.protocols import PER_EXAMPLE, PROTOCOLS


def test_every_protocol_refuses_an_empty_list():
  for name in PROTOCOLS:
    with pytest.raises(SphinxError, match='no entries'):
      PROTOCOLS[name]([])


def test_every_protocol_scores_single_answers():
  assert list(PER_EXAMPLE) == list(PROTOCOLS)
  for name in PER_EXAMPLE:
    assert PER_EXAMPLE[name]([]) == []


def test_an_unknown_metric_is_answered_with_the_nearest():
  with pytest.raises(SphinxError, match="did you mean 'relaxed_accuracy'"):
    PROTOCOLS['relaxed_acuracy']
