"""What the server does, for Prometheus."""

from collections.abc import Iterator

import prometheus_client as prometheus
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from sphinx_jax.serving.engine import Engine

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


class Metrics:
  """Counters and gauges of one server.

  Args:
    engine: that answers.

  Attributes:
    requests: finished HTTP requests of the API, by status.
    first_token: seconds from a request to its first token.
    seconds: seconds of answered requests.
  """

  def __init__(self, engine: Engine) -> None:
    self._registry = registry = prometheus.CollectorRegistry()
    self.requests = prometheus.Counter(
      'sphinx_jax_requests', 'Requests of the chat API.', ['status'], registry=registry
    )
    self.first_token = prometheus.Histogram(
      'sphinx_jax_first_token_seconds',
      'Seconds from a request to its first token.',
      buckets=_SECONDS,
      registry=registry,
    )
    self.seconds = prometheus.Histogram(
      'sphinx_jax_request_seconds',
      'Seconds of answered requests.',
      buckets=_SECONDS,
      registry=registry,
    )
    for name, text, read in (
      ('queue', 'Answers that wait for a slot.', lambda: engine.waiting),
      ('slots_used', 'Slots in use.', lambda: engine.running),
      ('slots', 'Slots.', lambda: engine.batch.rows),
      ('tokens_per_second', 'Tokens a second, over ten.', engine.tokens_per_second),
    ):
      gauge = prometheus.Gauge(f'sphinx_jax_{name}', text, registry=registry)
      gauge.set_function(read)
    registry.register(_Totals(engine))

  def page(self) -> tuple[bytes, str]:
    """Returns the page for Prometheus, and its content type."""
    return prometheus.generate_latest(self._registry), prometheus.CONTENT_TYPE_LATEST


class _Totals(Collector):
  """What an engine has counted since its start."""

  def __init__(self, engine: Engine) -> None:
    self._engine = engine

  def collect(self) -> Iterator[CounterMetricFamily]:
    engine = self._engine
    for name, text, value in (
      ('generated_tokens', 'Tokens of answers.', engine.generated),
      ('prompt_tokens', 'Tokens of prompts, images included.', engine.prompted),
      ('reused_tokens', 'Those that were in the cache.', engine.reused),
      ('images_encoded', 'Images that were encoded.', engine.images.misses),
      ('images_reused', 'Images whose visual tokens were kept.', engine.images.hits),
    ):
      yield CounterMetricFamily(f'sphinx_jax_{name}', text, value=value)
