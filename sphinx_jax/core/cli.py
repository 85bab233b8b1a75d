"""Command lines of the entry points: absl flags, `--config`, and errors as one line.

`--config` takes the name of a shipped config ('mini', 'stage2:13b,1k') or the path of a config file
('my/config.py'). The text after the colon is the argument of its `get_config`.
`--config.a.b=value` changes a setting. In flags and settings that are paths, a leading `~` is the
home folder.
"""

import difflib
import gc
import importlib.util
import io
import os
import pathlib
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from types import ModuleType

from absl import app, flags, logging
from ml_collections import ConfigDict, config_dict, config_flags

from sphinx_jax.core import compile_cache, compile_log, errors, paths, progress, renames
from sphinx_jax.core.text import printable

FLAGS = flags.FLAGS
flags.disclaim_key_flags()  # So that --help of an entry point lists --config among its own flags.
_OVERRIDES = tuple(f'{dashes}{no}config.' for dashes in ('--', '-') for no in ('', 'no'))
# Settings that are paths, in any section of a config.
_PATH_KEYS = ('data_dir', 'tokenizer', 'init_from', 'path', 'root', 'images', 'file')
_STREAMS = {1: '/dev/stdout', 2: '/dev/stderr'}  # By file descriptor.


def define_config(default: str | None = None, optional: bool = False) -> None:
  """Defines `--config` and its overrides `--config.a.b=value`.

  `FLAGS.config` is then a locked ConfigDict, or None if the flag is optional and not given.

  Args:
    default: value of the flag if it is not given, for example 'mini:quick'.
    optional: whether the flag may be left out although there is no default.
  """
  flags.DEFINE_string(
    'config',
    default,
    f'A shipped config ({", ".join(shipped_configs())}) or the path of a config file, then its '
    'argument after a colon: --config=mini:quick, --config=my/config.py. '
    'Any setting can be changed: --config.optimizer.lr=1e-4.',
  )
  if default is None and not optional:
    flags.register_validator(
      'config',
      lambda config: config is not None,
      'expected a config; give its name or file, for example --config=forkme:my.jsonl',
    )


def _parse_path(argument: str) -> str:
  path = paths.expand(argument)
  if path != os.devnull and pathlib.Path(path).is_char_device():  # Some never end.
    raise ValueError('a device; give a file or a folder')
  return path


class _PathParser(flags.ArgumentParser):
  """Parses a path.

  Args:
    may_be_empty: whether '' has a meaning.
  """

  def __init__(self, may_be_empty: bool = False) -> None:
    self.may_be_empty = may_be_empty

  def parse(self, argument: str) -> str:
    return _parse_path(argument)

  def flag_type(self) -> str:
    return 'path'


class _PathsParser(flags.ListParser):
  """Parses paths that are separated by commas. A path that exists may have commas itself."""

  def parse(self, argument: str | list[str]) -> list[str]:
    pieces = argument.split(',') if isinstance(argument, str) and argument else argument
    found = []
    while pieces:
      ends = [end for end in range(len(pieces), 1, -1) if _is_place(','.join(pieces[:end]))]
      end = ends[0] if ends else 1
      found.append(_parse_path(','.join(pieces[:end]).strip()))
      pieces = pieces[end:]
    return found


def _is_place(path: str) -> bool:
  """Whether a path exists, or is BASE+ADAPTER of two that do."""
  pairs = ((path[:i], path[i + 1 :]) for i, character in enumerate(path) if character == '+')
  return any(
    all(os.path.exists(os.path.expanduser(place.strip())) for place in places)
    for places in ((path,), *pairs)
  )


def define_path(
  name: str, default: str | None, text: str, required: bool = False, may_be_empty: bool = False
) -> None:
  """Defines a flag that is a path or a gs:// URL, like `flags.DEFINE_string`.

  Args:
    name, default, text, required: as there.
    may_be_empty: whether `--name=` has a meaning. It is refused otherwise.
  """
  flags.DEFINE(_PathParser(may_be_empty), name, default, text, required=required)


def define_paths(name: str, text: str) -> None:
  """Defines a flag that is a list of paths, [] by default."""
  flags.DEFINE(_PathsParser(), name, [], text, serializer=flags.ListSerializer(','))


def define_repeated_path(name: str, text: str) -> None:
  """Defines a flag that is a path and may be given several times, [] by default."""
  flags.DEFINE_multi(_PathParser(), None, name, [], text)


def define_seed(text: str) -> None:
  """Defines `--seed`, an int64, 0 by default."""
  flags.DEFINE_integer('seed', 0, text, lower_bound=-(2**63), upper_bound=2**63 - 1)


def run(main: Callable[[], None]) -> None:
  """Parses the command line and calls `main()`.

  A SphinxError, a wrong flag or an error in a config file ends the program with one line on stderr
  and exit code 2, Ctrl-C with code 130. If the reader of stdout is gone, the program ends quietly.
  """
  if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:  # So it was during imports.
    signal.signal(signal.SIGINT, signal.default_int_handler)
  os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')  # Hides TensorFlow's start-up notes.
  flags.DEFINE_bool('cache', True, 'Keep compiled programs on disk; the next start reads them.')
  _prepare_output()
  try:
    try:
      app.run(lambda _: _run_guarded(main), flags_parser=_parse)
    finally:
      sys.stdout.flush()
  except KeyboardInterrupt:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Another Ctrl-C ends the program at once.
    _exit_with_error('interrupted; run the same command again to resume', code=130)
  except OSError as error:
    if error.filename not in _STREAMS.values():
      raise
    for descriptor, name in _STREAMS.items():
      if name == error.filename or isinstance(error, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)  # The rest goes nowhere.
    if isinstance(error, BrokenPipeError):
      sys.exit(128 + signal.SIGPIPE)
    _exit_with_error(str(errors.from_os_error(error)))


def shipped_configs() -> list[str]:
  """Returns the names of the configs that are installed as `sphinx_jax.configs`."""
  folder = _shipped_folder()
  if folder is None:
    return []
  return sorted(file.stem for file in folder.glob('*.py') if 'def get_config(' in file.read_text())


def load_config(name: str) -> ConfigDict:
  """Returns the locked config that a value of `--config` names.

  Args:
    name: 'NAME' or 'NAME:ARGUMENT' of a shipped config, or the path of a config file, also with
      ':ARGUMENT'. The path 'configs/NAME.py' is the shipped config if there is no such file.

  Raises:
    SphinxError: there is no such config, or its file raises an exception. The message has the
      file and the line.
  """
  path, colon, argument = name.partition(':')
  file = _find_config(paths.expand(path))
  argument = ','.join(map(paths.expand, argument.split(',')))
  try:
    module = _load_module(file)
    config = module.get_config(*([argument] if colon else []))
    if not isinstance(config, (dict, ConfigDict)):
      raise TypeError(f'get_config returned {type(config).__name__}, not a ConfigDict')
    config = ConfigDict(config) if isinstance(config, dict) else config
    return renames.upgrade_loaded(config)
  except errors.SphinxError:
    raise
  except Exception as error:  # The file is the user's: any exception may come out of it.
    raise errors.make(
      f"config '{name}'",
      _describe(error, file),
      'a get_config(arg) that returns a ConfigDict',
      'correct the file',
    ) from error


def _shipped_folder() -> pathlib.Path | None:
  """Returns the folder of `sphinx_jax.configs`, or None if the package is not installed."""
  spec = importlib.util.find_spec('sphinx_jax.configs')
  return pathlib.Path(spec.origin).parent if spec and spec.origin else None


def _find_config(path: str) -> pathlib.Path:
  file = pathlib.Path(path)
  if file.is_file():
    return file.absolute()
  is_shipped = file.suffix == '' and len(file.parts) == 1
  is_shipped |= file.suffix == '.py' and file.parent == pathlib.Path('configs')
  names = shipped_configs()
  if is_shipped and file.stem in names:
    return _shipped_folder() / f'{file.stem}.py'
  near = difflib.get_close_matches(file.stem, names, n=1)
  if near:
    advice = f"did you mean '{near[0]}'?"
  elif names:
    advice = 'check the path'
  else:
    advice = "install the package with 'pip install -e .'"
  expected = f'a config file or one of {", ".join(names) or "the shipped configs"}'
  raise errors.make('--config', f"'{path}'", expected, advice)


def _load_module(file: pathlib.Path) -> ModuleType:
  name = f'sphinx_jax_config_{file.stem}'
  spec = importlib.util.spec_from_file_location(name, file)
  if spec is None:
    raise ImportError(f'{file.name} has no suffix .py')
  module = importlib.util.module_from_spec(spec)
  sys.modules[name] = module  # Dataclasses and pickle look their module up here.
  spec.loader.exec_module(module)
  return module


def _describe(error: Exception, file: pathlib.Path) -> str:
  """Returns the exception and where it was raised: the line of the config file if there is one."""
  text = f'{type(error).__name__}: {" ".join(str(error).split())}'
  if isinstance(error, SyntaxError) and error.filename:
    return f'{text} in {error.filename}, line {error.lineno}'
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if pathlib.Path(frame.filename) == file]
  return f'{text} in {file}, line {lines[-1]}' if lines else f'{text} in {file}'


def _parse(arguments: list[str]) -> list[str]:
  progress.setup_logging()
  try:
    arguments = [arguments[0], *FLAGS.read_flags_from_files(arguments[1:], force_gnu=False)]
    moved = renames.command_of_flags(arguments)
    if moved is not None:
      os.execv(sys.executable, [sys.executable, *moved])
    arguments = renames.upgrade_arguments(arguments)
    others, overrides = _split_overrides(arguments)
    rest = FLAGS(others)
    _check_not_empty()
    if 'config' in FLAGS and FLAGS.config is not None:
      config = _override(load_config(FLAGS.config), overrides)
      with config.unlocked():
        _expand_paths(config)
      FLAGS.config = config
    elif overrides:
      others.extend(overrides)
      rest = FLAGS(others)  # Reports the unknown flag.
    _check_no_positional(rest)
    return rest
  except flags.Error as error:
    lines = [line for line in str(error).splitlines() if line.strip()]
    _exit_with_error(lines[0])
  except errors.SphinxError as error:
    _exit_with_error(str(error))
  except OSError as error:
    _exit_with_error(str(errors.from_os_error(error)))


def _check_not_empty() -> None:
  """Refuses a flag that is given and empty, unless '' has a meaning for it."""
  for name in FLAGS:
    flag = FLAGS[name]
    values = flag.value if isinstance(flag.value, list) else [flag.value]
    may_be_empty = flag.default == '' or getattr(flag.parser, 'may_be_empty', False)
    if flag.present and not may_be_empty and (not values or '' in values):
      raise errors.make(
        f'--{name}', 'an empty text', 'a value', 'is it a shell variable that is not set?'
      )


def _expand_paths(section: ConfigDict) -> None:
  """Replaces `~` in the settings of a config that are paths."""
  for key, value in section.items():
    if isinstance(value, ConfigDict):
      _expand_paths(value)
    elif key in _PATH_KEYS and isinstance(value, str) and value.startswith('~'):
      section[key] = paths.expand(value)


def _split_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
  """Separates `--config.a.b=value` and `--config.a.b value` from the other arguments."""
  others, overrides = [], []
  takes_value = False  # Whether the argument before is an override without '='.
  for argument in arguments:
    if argument.startswith(_OVERRIDES):
      overrides.append(argument)
      takes_value = '=' not in argument
    elif takes_value and not argument.startswith('-'):
      overrides.append(argument)
      takes_value = False
    else:
      others.append(argument)
      takes_value = False
  return others, overrides


def _override(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
  """Applies `--config.a.b=value` flags, checked by the types of the config's own values.

  None stands for no value, also where the config has a text. A setting that is None takes any type.
  """
  dotted = [override.partition('=')[0].partition('config.')[2] for override in overrides]
  keys = [_check_key(config, path) for path in dotted if path]
  for section, key in keys:
    if section[key] is None and section.get_type(key) is type(None):
      with section.unlocked():
        section[key] = config_dict.placeholder(object)
  arguments = ['', *overrides]
  values = flags.FlagValues()
  try:
    config_flags.DEFINE_config_dict('config', config, flag_values=values, sys_argv=arguments)
    rest = values(arguments)
  except (AttributeError, LookupError, SyntaxError, TypeError, ValueError) as error:
    raise errors.SphinxError(f'--config: {" ".join(str(error).split())}') from error
  _check_no_positional(rest)
  for section, key in keys:
    if section[key] == 'None':
      with section.unlocked():
        section[key] = None
  return renames.upgrade_loaded(values.config)


def _check_key(config: ConfigDict, path: str) -> tuple[ConfigDict, str]:
  """Returns the section of a dotted path and the key in it, without the index of a tuple's item."""
  section, (*parents, last) = config, path.partition('[')[0].split('.')
  for key in (*parents, last):
    if not isinstance(section, ConfigDict):
      raise errors.make(
        f'--config.{path}', f"'{key}' in a plain value", 'a section before it', 'correct the name'
      )
    if key not in section:
      raise errors.unknown(f'--config.{path}', key, section)
    parent, section = section, section[key]
  return parent, last


def _check_no_positional(arguments: Sequence[str]) -> None:
  if len(arguments) > 1:
    raise errors.make(
      'command line', f"'{arguments[1]}'", 'only flags like --name=value', 'see --help'
    )


def _run_guarded(main: Callable[[], None]) -> None:
  logging.set_verbosity(logging.WARNING)  # Libraries log more than the package does.
  gc.freeze()  # Imports leave, and tracing makes, many objects that are no garbage, and a search
  gc.set_threshold(100_000, 50, 100)  # for garbage at every 700 takes a tenth of the start.
  if 'jax' in sys.modules:  # Else the entry point compiles nothing.
    compile_log.enable()
    if FLAGS.cache:
      compile_cache.enable()
  try:
    main()
  except errors.SphinxError as error:
    _exit_with_error(str(error))
  except OSError as error:
    if error.filename in _STREAMS.values():
      raise
    _exit_with_error(str(errors.from_os_error(error)))
  except (MemoryError, RuntimeError) as error:
    if isinstance(error, RuntimeError) and 'RESOURCE_EXHAUSTED' not in str(error):  # JAX's name.
      raise
    reason = (str(error).splitlines() or ['an allocation that failed'])[0]
    advice = 'lower the batch, the model or the mesh axes that copy it, or take more devices'
    _exit_with_error(str(errors.make('memory', reason, 'to fit', advice)))


class _Stream(io.FileIO):
  """The descriptor of stdout or stderr. Its errors have its name: its reader is gone, say."""

  def write(self, data: bytes) -> int:
    try:
      return super().write(data)
    except OSError as error:
      error.filename = _STREAMS[self.fileno()]
      raise


def _prepare_output() -> None:
  """Makes stdout and stderr take any text: escaped if need be, and lost if they are closed."""
  for name in ('stdout', 'stderr'):
    stream = getattr(sys, name)
    if stream is None:
      setattr(sys, name, open(os.devnull, 'w', errors='backslashreplace'))
    elif stream is getattr(sys, f'__{name}__'):  # Not a test's or a notebook's.
      raw = _Stream(stream.fileno(), 'w', closefd=False)
      is_flushed = stream.line_buffering or stream.write_through
      setattr(
        sys,
        name,
        io.TextIOWrapper(
          io.BufferedWriter(raw), stream.encoding, 'backslashreplace', line_buffering=is_flushed
        ),
      )


def _exit_with_error(line: str, code: int = 2) -> None:
  print(f'error: {printable(line)}', file=sys.stderr)
  sys.exit(code)
