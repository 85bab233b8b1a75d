"""Serves a checkpoint over HTTP, with the API of OpenAI.

    python -m sphinx_jax.serve --checkpoint=DIR --port=8000

Requests are answered together (continuous batching): --slots of them at a time, of --max_length
positions each. Clients of OpenAI work with base_url=http://127.0.0.1:8000/v1, and
http://127.0.0.1:8000/ is a page to try the model. See docs/serving.md for what is computed, refused
and limited. It needs the extra `serve`: pip install -e '.[serve]'.
"""

import json
import pathlib

from absl import flags

from sphinx_jax.checkpoint import identity
from sphinx_jax.core import cli, errors, text
from sphinx_jax.core.progress import log
from sphinx_jax.evaluation.protocols import box_forms
from sphinx_jax.generate import load, model_flags
from sphinx_jax.models import quantized

FLAGS = flags.FLAGS


def read_keys(file: str) -> list[str]:
  """Reads API keys, one a line.

  Raises:
    SphinxError: there is none.
  """
  keys = [line.strip() for line in pathlib.Path(file).read_text().splitlines() if line.strip()]
  if not keys:
    raise errors.make(
      f"--api_key_file '{file}'", 'no key', 'one key a line', 'write one, or leave the flag out'
    )
  return keys


def main() -> None:
  try:
    from sphinx_jax.serving import api, engine as engine_lib, http, images
  except ModuleNotFoundError as error:
    raise errors.make(
      'serve', f'no package {error.name}', "the extra 'serve'", "pip install -e '.[serve]'"
    ) from error
  settings = api.Settings(
    name=FLAGS.model_name or pathlib.Path(FLAGS.checkpoint).name,
    fingerprint=text.digest(
      json.dumps([identity.of_weights(FLAGS.checkpoint, FLAGS.adapter), FLAGS.weights])
    ),
    queue=FLAGS.queue,
    max_tokens=FLAGS.max_tokens,
    max_choices=FLAGS.max_choices,
    body_bytes=FLAGS.max_body_mib << 20,
    seconds=FLAGS.timeout,
    images=images.Limits(
      count=FLAGS.max_images, file_bytes=FLAGS.max_body_mib << 20, pixels=FLAGS.max_pixels
    ),
    allow_hosts=FLAGS.allow_hosts,
    keys=read_keys(FLAGS.api_key_file) if FLAGS.api_key_file else [],
    cors_origins=FLAGS.cors_origins,
    boxes=FLAGS.boxes,
  )
  listener = http.bind(FLAGS.host, FLAGS.port)  # Before weights are read.
  model = load.load_model(
    FLAGS.checkpoint, mesh=FLAGS.mesh, adapter=FLAGS.adapter, weights=FLAGS.weights
  )
  engine = engine_lib.Engine(
    model, FLAGS.slots, FLAGS.max_length, image_bytes=FLAGS.image_cache_mib << 20
  )
  app = api.make_app(engine, settings)
  if FLAGS.warmup:
    log.info('warm-up: %.0f s; nothing is compiled later', engine.warm_up())
  engine.start()
  address = f'http://{FLAGS.host}:{listener.getsockname()[1]}'
  log.info(
    "model '%s' at %s/v1, page at %s/, %d slots of %d positions",
    settings.name,
    address,
    address,
    FLAGS.slots,
    engine.batch.length,
  )
  try:
    http.run(http.make_server(app, FLAGS.drain), listener)
  finally:
    engine.stop()
  log.info('stopped; all requests have ended')


if __name__ == '__main__':
  model_flags.define_model()
  flags.DEFINE_enum('weights', None, list(quantized.FORMS), 'Hold matrices in few bits.')
  flags.DEFINE_string('host', '127.0.0.1', 'Address to listen at; 0.0.0.0 is all of this machine.')
  flags.DEFINE_integer('port', 8000, 'Port to listen at.', lower_bound=0, upper_bound=65535)
  flags.DEFINE_string('model_name', '', 'Name in the API; by default that of the directory.')
  flags.DEFINE_integer('slots', 8, 'Answers that are decoded together.', lower_bound=1)
  flags.DEFINE_integer(
    'max_length',
    None,
    'Most positions of a prompt with images and its answer; by default those of the model.',
    lower_bound=2,
  )
  flags.DEFINE_bool('warmup', True, 'Compile all programs before the first request.')
  flags.DEFINE_integer('queue', 128, 'Answers that may wait for a slot.', lower_bound=0)
  flags.DEFINE_integer('max_tokens', 4096, 'Most tokens of an answer.', lower_bound=1)
  flags.DEFINE_integer('max_choices', 8, 'Most answers of a request (n).', lower_bound=1)
  flags.DEFINE_integer('max_images', 16, 'Most images of a request.', lower_bound=0)
  flags.DEFINE_integer('max_pixels', 1 << 25, 'Most pixels of an image.', lower_bound=1)
  flags.DEFINE_integer('max_body_mib', 32, 'Most MiB of a request.', lower_bound=1)
  flags.DEFINE_integer('image_cache_mib', 256, 'MiB for visual tokens of images.', lower_bound=0)
  flags.DEFINE_float('timeout', 300.0, 'Seconds in which an answer must end.', lower_bound=0.1)
  flags.DEFINE_integer('drain', 60, 'Seconds for requests to end after SIGTERM.', lower_bound=0)
  flags.DEFINE_list(
    'allow_hosts',
    [],
    'HOST or HOST:PORT that images may be read from by http(s), separated by commas. Private '
    'addresses must be listed as addresses.',
  )
  cli.define_path('api_key_file', None, 'File of API keys, one a line, one of which is asked for.')
  flags.DEFINE_enum(
    'boxes',
    'square',
    list(box_forms.FORMS),
    'Scale of boxes and points without a mark of it, for response_format: [0, 1] of the padded '
    'square, as this package trains; [0, 1] of the image; thousandths of it; or pixels.',
  )
  flags.DEFINE_list('cors_origins', [], 'Origins of web pages that may use the server.')
  cli.run(main)
