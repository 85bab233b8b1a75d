"""How a door is opened: absl flags, `--config=file.py:arg` with dotted overrides, and errors as one clear line."""

import os
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import config_flags

from sphinx_jax.core import errors, progress

FLAGS = flags.FLAGS


def define_config(default: str | None = None, optional: bool = False) -> None:
  """Defines `--config=configs/file.py:arg` and its `--config.a.b=value` overrides; an optional one may be None."""
  config_flags.DEFINE_config_file(
    'config',
    default,
    'Config file, with an argument after a colon: configs/mini.py:quick. '
    'Any setting in it can be changed: --config.train.steps=100.',
    lock_config=True,
  )
  FLAGS['config'].optional = optional


def run(main: Callable[[], None]) -> None:
  """Parses the command line and calls `main()`; a SphinxError or a bad flag ends as one line on stderr and exit code 2."""
  os.environ.setdefault(
    'TF_CPP_MIN_LOG_LEVEL', '2'
  )  # TensorFlow's start-up notes are not ours to pass on.
  app.run(lambda _: _guarded(main), flags_parser=_parse)


def _parse(argv: list[str]) -> list[str]:
  try:
    rest = FLAGS(argv, known_only=False)
    if 'config' in FLAGS and not (FLAGS['config'].optional and FLAGS.config is None):
      FLAGS.config.is_locked  # A file that cannot be read is only complained of when the config is used.
    if len(rest) > 1:
      raise errors.make(
        'command line', f"'{rest[1]}'", 'only flags like --name=value', 'see --help'
      )
    return rest
  except flags.Error as error:
    lines = [line for line in str(error).splitlines() if line.strip()]
    _die(
      lines[-1].partition('SphinxError: ')[2] or lines[0]
    )  # A config file's own error comes as a printed traceback.
  except (
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
  ) as error:  # What a wrong --config.a.b raises.
    _die(f'config: {str(error.args[0] if error.args else error)}'.replace('\n', ' '))
  except OSError:
    path = next(
      (arg.partition('=')[2] for arg in argv if arg.startswith('--config=')), 'the default'
    )
    _die(
      str(
        errors.make(
          '--config',
          f"'{path}'",
          'a readable config file',
          'start from the project root, or see configs/',
        )
      )
    )


def _guarded(main: Callable[[], None]) -> None:
  progress.setup_logging()
  logging.set_verbosity(
    logging.WARNING
  )  # What libraries note in passing would drown our own lines.
  try:
    main()
  except errors.SphinxError as error:
    _die(str(error))
  except KeyboardInterrupt:
    _die('interrupted; run the same command again to go on', code=130)


def _die(line: str, code: int = 2) -> None:
  print(f'error: {line}', file=sys.stderr)
  sys.exit(code)
