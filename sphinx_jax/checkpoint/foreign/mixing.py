"""Mixes the weights of folders of HF transformers into a new folder, without a conversion.

The result is that of a mix of the converted folders (checkpoint/mixing.py). A shard and the same
tensor of all inputs are in memory together.
"""

import contextlib
import functools
import math
import pathlib
import shutil
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from sphinx_jax.checkpoint import bundle, content
from sphinx_jax.checkpoint.foreign import assemble, card, files, hub, safetensors, sources
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.checkpoint.read_ahead import read_ahead
from sphinx_jax.core import errors, files as core_files, paths, trees
from sphinx_jax.core.progress import Progress, log
from sphinx_jax.data.tokenizer import Tokenizer
from sphinx_jax.mix import linear, methods, tensors as mix_tensors, weights
from sphinx_jax.models import foreign, forms

RECIPE = 'mix.json'
_PIECE = 1 << 23  # Numbers that are mixed at a time.
_HELD_BYTES = 512 << 20  # Of a tensor of all inputs that is read as a whole, if rows can be read.


def mix_folders(
  inputs: Sequence[files.Path],
  coefficients: weights.Coefficients,
  output: files.Path,
  unnormalized: bool = False,
  base: files.Path | None = None,
  method: str = 'linear',
  dtype: str | None = None,
  options: Mapping[str, float | None] = types.MappingProxyType({}),
  statistics: Sequence[files.Path] = (),
) -> files.Path:
  """Writes the mix of several folders. An output that already holds the same mix is kept.

  The output gets the tensor names, the configs and the tokenizer of the first input, a model card,
  and `mix.json` with the parents and the coefficients.

  Args:
    inputs: folders of HF transformers, names in the local hub cache, or BASE+ADAPTER.
    coefficients, unnormalized, base, method, dtype, options: as of
      `checkpoint.mixing.mix_checkpoints`.
    output: folder to create.
    statistics: none; they belong to checkpoints.

  Returns:
    The output folder.

  Raises:
    SphinxError: an input is no folder of HF transformers, the inputs differ in architecture,
      settings, tokenizer or shapes, the coefficients are wrong, a rule matches nothing, the method
      lacks what it needs or needs statistics, the mix is not finite, or the output holds something
      else or cannot be written.
  """
  has_base = base is not None
  _check_statistics(method)
  methods.check(method, len(inputs), has_base, len(statistics))
  options = methods.settle(method, options)
  rules = weights.as_rules(coefficients, len(inputs), unnormalized, method, has_base)
  places = [*inputs, base] if has_base else [*inputs]
  opened = [_open(place) for place in places]
  assemblies = [assemble.assemble([source]) for source in opened]
  _check_same(places, opened, assemblies)
  experts = _count_experts(assemblies[0])
  matched = weights.match(rules, assemblies[0].shapes, experts)
  recipe = {
    'parents': [_identity(place) for place in inputs],
    'coefficients': weights.as_json(coefficients),
    'base': _identity(base) if has_base else None,
    'method': method,
    'dtype': dtype,
    **({'options': options} if options else {}),
  }
  stored = pathlib.Path(output, RECIPE)
  if stored.is_file() and core_files.read_json(stored) == recipe:
    log.info('%s: this mix was written before', output)
    return output
  with (
    paths.new_folder(output) as folder,
    jax.default_device(jax.local_devices(backend='cpu')[0]),
  ):
    mixed = _mixed_tensors(
      opened, assemblies[0], has_base, matched, experts, method, options, dtype
    )
    with mixed as tensors:
      safetensors.write_safetensors(folder, tensors)
    _copy_files(opened[0], folder, dtype)
    text = _card(pathlib.Path(output).name, places, recipe, rules)
    core_files.write_atomic(folder / card.NAME, text)
    core_files.write_json(folder / RECIPE, recipe)
  log.info('%s: %s of %s', output, recipe['coefficients'], ', '.join(map(str, places)))
  return output


def _check_statistics(method: str) -> None:
  """Raises SphinxError if a method needs statistics: they are measured of checkpoints."""
  if methods.find(method).statistics is not None:
    raise errors.make(
      f'--method={method}',
      'folders of HF transformers',
      'checkpoints of sphinx_jax, which have statistics',
      'import them first (python -m sphinx_jax.convert)',
    )


def _count_experts(assembly: assemble.Assembly) -> dict[str, int]:
  """Path -> number of experts, of parameters that consist of a tensor for each."""
  counts: dict[str, int] = {}
  for weight in assembly.table:
    if weight.expert is not None:
      counts[weight.path] = counts.get(weight.path, 0) + 1
  return counts


def _open(place: files.Path) -> sources.Source:
  """Opens an input.

  Raises:
    SphinxError: HF transformers does not load such a folder.
  """
  source = sources.open_source(place)
  if not forms.is_transformers(source.part, source.form):
    raise errors.make(
      f"mix_weights, input '{place}'",
      source.kind,
      'a folder of HF transformers, or a checkpoint of sphinx_jax',
      'import it first (python -m sphinx_jax.convert)',
    )
  return source


def _check_same(
  places: Sequence[files.Path],
  opened: Sequence[sources.Source],
  assemblies: Sequence[assemble.Assembly],
) -> None:
  """Compares all inputs with the first.

  Raises:
    SphinxError: one has another architecture, tokenizer, setting or shape.
  """
  for place, source in zip(places[1:], opened[1:]):
    if source.kind != opened[0].kind:
      raise errors.make(
        f"mix_weights, input '{place}'",
        source.kind,
        f"{opened[0].kind}, as '{places[0]}' is",
        'mix models of one architecture',
      )
  bundles = [
    bundle.Bundle(
      ml_collections.ConfigDict({'model': assembly.config}),
      _tokenizer(assembly, assemblies[0], place),
      assembly.dialog,
    )
    for place, assembly in zip(places, assemblies)
  ]
  bundle.check_same_model('mix_weights', places, bundles)
  first = trees.unflatten(dict(assemblies[0].shapes))
  for place, assembly in zip(places[1:], assemblies[1:]):
    other = trees.unflatten(dict(assembly.shapes))
    weights.check_same_leaves(first, other, f"input '{place}'", f"'{places[0]}'")


def _tokenizer(
  assembly: assemble.Assembly, first: assemble.Assembly, place: files.Path
) -> bytes | None:
  """Returns the first input's tokenizer if an input has the same tokens, in whatever file.

  A fine-tune may have a tokenizer.json alone, or no tokenizer.

  Raises:
    SphinxError: an id is another token.
  """
  if assembly.tokenizer is None or first.tokenizer in (None, assembly.tokenizer):
    return first.tokenizer
  own, other = (Tokenizer(each.tokenizer, each.added_tokens).pieces() for each in (assembly, first))
  different = [i for i in own if i in other and own[i] != other[i]]
  if different:
    i = different[0]
    raise errors.make(
      f"mix_weights, input '{place}'",
      f'another tokenizer ({len(different)} tokens differ: {i} is {own[i]!r}, not {other[i]!r})',
      'that of the first input',
      'take models of one tokenizer',
    )
  return first.tokenizer


def _identity(place: files.Path) -> dict[str, Any]:
  """What `mix.json` has about an input. It has no path of this machine."""
  return {'name': _name(place), 'identity': hub.identity(place)}


def _name(place: files.Path) -> str:
  return ' + '.join(hub.name_of(hub.locate(part)) for part in hub.split(place) if part)


@contextlib.contextmanager
def _mixed_tensors(
  opened: Sequence[sources.Source],
  first: assemble.Assembly,
  has_base: bool,
  coefficients: Mapping[str, Sequence[float]],
  experts: Collection[str],
  method: str,
  options: methods.Options,
  dtype: str | None,
) -> Iterator[dict[str, Tensor]]:
  """Yields name -> mixed tensor. They must be read in order, each once.

  A parent with the coefficient 0 is not read. What the model does not use is the first parent's.
  The experts of some paths have coefficients of their own.
  """
  path_of = {
    key: f'{weight.path}/{weight.expert}' if weight.path in experts else weight.path
    for weight in first.table
    for _, key in weight.places()
  }
  mixed, reads, total = {}, [], 0
  for key, tensor in opened[0].tensors.items():
    row = coefficients[path_of[key]] if key in path_of else (1,)
    used = methods.used(row)
    numbers = used + [len(opened) - 1] * (has_base and key in path_of)
    leaves = {i: opened[i].tensors[key] for i in numbers}
    reads.append(_plan_read(leaves))
    total += trees.nbytes(leaves)
    out_dtype = linear.out_dtype(tensor.dtype, dtype)
    settings = (method, options) if key in path_of else ('linear', {})
    mix = functools.partial(_mix, *settings, key, used, [row[i] for i in used], out_dtype)
    mixed[opened[0].prefix + key] = Tensor(tensor.shape, out_dtype, mix)
  values = read_ahead(reads)
  with Progress(total=total, what='mixing', unit='B') as bar:

    def read(mix: Callable[[dict[int, np.ndarray]], np.ndarray]) -> np.ndarray:
      of_inputs = next(values)
      bar.update(sum(value.nbytes for value in of_inputs.values()))
      return mix(of_inputs)

    yield {
      name: Tensor(tensor.shape, tensor.dtype, functools.partial(read, tensor.read))
      for name, tensor in mixed.items()
    }


def _plan_read(tensors: Mapping[int, Tensor]) -> tuple[int, Callable[[], Mapping[int, Any]]]:
  """Returns the bytes of a read and its function; large tensors are left to be read by rows."""
  size = sum(tensor.nbytes for tensor in tensors.values())
  if size > _HELD_BYTES and all(tensor.read_rows for tensor in tensors.values()):
    return 0, lambda: tensors
  return size, lambda: {number: tensor.read() for number, tensor in tensors.items()}


def _mix(
  method: str,
  options: methods.Options,
  key: str,
  used: Sequence[int],
  coefficients: Sequence[float],
  dtype: np.dtype,
  values: Mapping[int, np.ndarray | Tensor],
) -> np.ndarray:
  """Mixes one tensor piece by piece, so that copies of the whole are not needed.

  Args:
    method, options: see mix/methods.py.
    key: name of the tensor.
    used: positions of the parents that are used.
    coefficients: of these parents.
    dtype: of the result.
    values: number of the input -> its tensor, read or not: of the parents, then of the base if
      there is one.

  Raises:
    SphinxError: the mix is not finite.
  """
  first, count = next(iter(values.values())), len(used)

  def pieces() -> Iterator[mix_tensors.Part]:
    for start, leaves in _pieces(list(values.values())):
      yield mix_tensors.Part(leaves[:count], leaves[count] if leaves[count:] else None, start)

  tensor = mix_tensors.Tensor(key, math.prod(first.shape), used, coefficients, pieces)
  mixed = np.empty(first.shape, dtype)
  for part, of_part in zip(pieces(), methods.mix_tensor(method, tensor, options, dtype)):
    mixed.reshape(-1)[part.start : part.start + part.size] = of_part
  if not content.is_finite(mixed):
    read = {i: value.read() if isinstance(value, Tensor) else value for i, value in values.items()}
    broken = [str(i + 1) for i, value in read.items() if not content.is_finite(value)]
    raise errors.make(
      'mix_weights',
      f'NaN or infinity in {key}' + (f' of input {", ".join(broken)}' if broken else ''),
      'finite weights',
      'check the inputs, or take a --dtype of more range',
    )
  return mixed


def _pieces(
  values: Sequence[np.ndarray] | Sequence[Tensor],
) -> Iterator[tuple[int, list[np.ndarray]]]:
  """Yields (position, numbers from there on of every value), in row-major order."""
  shape = values[0].shape
  if not isinstance(values[0], Tensor):
    flat = [value.reshape(-1) for value in values]
    for start in range(0, flat[0].size, _PIECE):
      yield start, [value[start : start + _PIECE] for value in flat]
    return
  row = math.prod(shape[1:])
  count = max(_PIECE // row, 1)
  for start in range(0, shape[0], count):
    rows = slice(start, min(start + count, shape[0]))
    yield start * row, [value.read_rows(rows).reshape(-1) for value in values]


def _copy_files(first: sources.Source, folder: pathlib.Path, dtype: str | None) -> None:
  """Copies what the first input has beside its weights; its config gets the requested dtype."""
  place = first.path if first.path.is_dir() else first.path.parent
  form = forms.FORMS[first.part][first.form]
  own = (*form.configs, *form.beside, 'tokenizer.model', *foreign.TRANSFORMERS_FILES)
  for name in own:
    if (place / name).is_file():
      shutil.copyfile(place / name, folder / name)
  if dtype is not None:
    config = files.read_json(folder / 'config.json')
    config['dtype' if 'dtype' in config else 'torch_dtype'] = dtype
    core_files.write_json(folder / 'config.json', config)


def _card(
  title: str, places: Sequence[files.Path], recipe: Mapping[str, Any], rules: weights.Rules
) -> str:
  """Returns the model card: parents, coefficients and licences.

  Args:
    title: name of the mix.
    places: the parents, then the base if there is one.
    recipe: contents of `mix.json`.
    rules: the coefficients; the last rule is the default.
  """
  folders = [hub.locate(part) for place in places for part in hub.split(place) if part]
  models = [(hub.name_of(folder), card.licence(folder)) for folder in dict.fromkeys(folders)]
  licences = {licence for _, licence in models if licence}
  options = (f'{name} {value:g}' for name, value in recipe.get('options', {}).items())
  lines = [
    'The weights of several models, mixed by sphinx_jax (`python -m sphinx_jax.mix_weights`).',
    '',
    '| parent | coefficient |',
    '|---|---|',
    *(f'| {_name(place)} | {c:g} |' for place, c in zip(places, rules[-1][1])),
    '',
    f'Method: {", ".join([recipe["method"], *options])}; sums in float32.',
  ]
  for pattern, row in rules[:-1]:
    lines.append(f'Parameters `{pattern}`: {", ".join(f"{c:g}" for c in row)}.')
  if recipe['base'] is not None:
    lines.append(f'Base of the differences that are added: {recipe["base"]["name"]}.')
  lines += ['', '| model | license |', '|---|---|']
  lines += [f'| {name} | {licence or "not stated"} |' for name, licence in models]
  licence = 'other' if len(licences) > 1 else next(iter(licences), None)
  return card.text(title, licence, [*dict(models)], '\n'.join(lines))
