import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from sphinx_jax import convert, mix_weights
from sphinx_jax.checkpoint import content, mixing, store, stream
from sphinx_jax.core import errors, trees
from sphinx_jax.mix import methods, weights
from tests import command, release
from tests.checkpoint import bucket


def params(value: float) -> dict:
  return {
    'llm': {'w': jnp.full((2, 2), value)},
    'encoders': {'w': jnp.full((3,), value, jnp.bfloat16)},
  }


@pytest.fixture
def parents(tmp_path):
  for name, value, tokenizer in (
    ('real', 1.0, 'cGllY2Vz'),
    ('synthetic', 3.0, 'cGllY2Vz'),
    ('foreign', 2.0, 'b3RoZXJz'),
  ):
    with store.Store(tmp_path / name) as run:
      run.save(
        7,
        params(value),
        {'moments': jnp.zeros(2)},
        {'config': '{}', 'tokenizer': tokenizer, 'dialog': {'system': ''}},
      )
  return tmp_path


def drawn(seed: int) -> dict[str, np.ndarray]:
  """Stacks, tables and vectors of several dtypes, larger than the parts that `small_parts` cuts."""
  rng = np.random.default_rng(seed)
  shapes = {
    'llm/layers/w': ((3, 40, 64), ml_dtypes.bfloat16),
    'llm/layers/scale': ((3, 64), np.float32),
    'llm/embed': ((301, 33), np.float32),
    'encoders/kernel': ((2, 3, 5, 48), np.float16),
    'encoders/b': ((7,), np.float32),
  }
  values = {
    path: rng.standard_normal(shape).astype(dtype) for path, (shape, dtype) in shapes.items()
  }
  values['encoders/b'][:3] = -0.0, 1e18, 1e-45
  return values


def write(directory, values, tokenizer='cGllY2Vz'):
  writer = stream.Writer(
    directory,
    {'params': values},
    {'config': '{}', 'tokenizer': tokenizer, 'dialog': {'system': ''}},
  )
  for path, value in values.items():
    writer.write('params', path, value)
  writer.finish()
  return directory


@pytest.fixture
def small_parts(monkeypatch):
  """Cuts every leaf of `drawn` into parts, as a leaf of a 13B model is."""
  monkeypatch.setattr(mixing, '_PART_BYTES', 4096)


@pytest.fixture(scope='module')
def written(tmp_path_factory):
  folder = tmp_path_factory.mktemp('written')
  return [write(folder / str(seed), drawn(seed)) for seed in range(3)]


def content_hash(tree) -> str:
  hashed = content.ContentHash()
  for path, array in tree.items():
    hashed.update(path, array, array.read(()))
  return hashed.hexdigest()


def load(directory) -> dict[str, np.ndarray]:
  return {path: array.read(()) for path, array in stream.read(directory).items()}


def same_bits(a, b) -> bool:
  return a.keys() == b.keys() and all(
    a[path].dtype == b[path].dtype
    and np.asarray(a[path]).tobytes() == np.asarray(b[path]).tobytes()
    for path in a
  )


def test_a_mix_is_a_checkpoint_that_records_its_parents(parents):
  output = mixing.mix_checkpoints(
    [parents / 'real', parents / 'synthetic'], (0.25, 0.75), parents / 'mix'
  )
  mixed, meta = store.load_params(output), store.load_meta(output)
  assert float(mixed['llm']['w'][0, 0]) == 2.5 and mixed['encoders']['w'].dtype == jnp.bfloat16
  assert [(parent['directory'], parent['step']) for parent in meta['parents']] == [
    (str(parents / name), 7) for name in ('real', 'synthetic')
  ]
  assert (
    meta['coefficients'] == [0.25, 0.75]
    and meta['tokenizer'] == 'cGllY2Vz'
    and meta['config'] == '{}'
  )


def test_hashes_in_the_meta_are_those_of_the_content(written, tmp_path, small_parts):
  mixing.mix_checkpoints(written[:2], (0.25, 0.75), tmp_path / 'mix', base=written[2])
  meta = store.load_meta(tmp_path / 'mix')
  found = [content_hash(stream.read(place)) for place in (*written, tmp_path / 'mix')]
  assert [
    meta['parents'][0]['hash'],
    meta['parents'][1]['hash'],
    meta['base'][0]['hash'],
    meta['hash'],
  ] == found
  assert len(set(found)) == 4


def test_a_hash_does_not_depend_on_chunks(written, tmp_path, small_parts):
  with store.Store(tmp_path / 'packed') as run:
    run.save(1, trees.unflatten(jax.tree.map(jnp.asarray, drawn(0))), None, {'config': '{}'})
  assert content_hash(stream.read(tmp_path / 'packed')) == content_hash(stream.read(written[0]))
  other = drawn(0)
  other['llm/embed'][5, 5] += 1
  assert content_hash(stream.read(write(tmp_path / 'other', other))) != content_hash(
    stream.read(written[0])
  )


@pytest.mark.parametrize(
  'method, coefficients, based, dtype',
  [
    ('linear', (0.3, 0.7), False, None),
    ('linear', (0.3, 0.7), True, 'bfloat16'),
    ('linear', (0.3, 0.7), False, 'float32'),
    ('linear', [('llm/layers/.*', (0.9, 0.1)), ('.*', (0, 1))], False, None),
    ('slerp', (0.3, 0.7), False, None),
  ],
)
def test_a_streamed_mix_equals_the_mix_of_whole_trees(
  written, tmp_path, small_parts, method, coefficients, based, dtype
):
  mixing.mix_checkpoints(
    written[:2],
    coefficients,
    tmp_path / 'mix',
    base=written[2] if based else None,
    method=method,
    dtype=dtype,
  )
  a, b, base = (trees.unflatten(jax.tree.map(jnp.asarray, drawn(seed))) for seed in range(3))
  mix = jax.jit(
    lambda a, b, base: weights.mix(
      [a, b], coefficients, base=base if based else None, method=method, dtype=dtype
    )
  )
  whole = {path: np.asarray(leaf) for path, leaf in trees.flatten(mix(a, b, base)).items()}
  if method == 'linear':
    assert same_bits(load(tmp_path / 'mix'), whole)
    return
  # The three sums of a leaf are rounded part by part.
  for path, leaf in load(tmp_path / 'mix').items():
    np.testing.assert_allclose(
      leaf.astype(np.float32),
      whole[path].astype(np.float32),
      rtol=1e-2 if leaf.dtype.itemsize < 4 else 1e-5,
    )


STACKED = {'llm/layers/w': 1, 'llm/layers/scale': 1, 'encoders/kernel': 2}
EXACT = ('linear', 'ties', 'dare_linear', 'dare_ties', 'breadcrumbs')
# The others have tests in test_mix_stats.py.
WITHOUT_STATISTICS = [name for name, row in methods.METHODS.items() if row.statistics is None]


@pytest.mark.parametrize('is_held', [True, False])
@pytest.mark.parametrize('method', WITHOUT_STATISTICS)
def test_a_streamed_mix_of_every_method_equals_that_of_whole_trees(
  written, tmp_path, small_parts, monkeypatch, method, is_held
):
  """With layers and experts that have coefficients of their own, in one part or in several."""
  if not is_held:
    monkeypatch.setattr(mixing, '_TENSOR_BYTES', 0)
  monkeypatch.setattr(mixing, '_stacked', lambda config: STACKED)
  base = None if methods.METHODS[method].base == 'none' else 2
  rules = [('encoders/kernel/1', (1, 0)), ('encoders/b', (0, 1)), ('.*', (0.5, 0.5))]
  mixing.mix_checkpoints(
    written[:2], rules, tmp_path / 'mix', base=base and written[base], method=method
  )
  a, b, start = (trees.unflatten(drawn(seed)) for seed in range(3))
  mixed = weights.mix([a, b], rules, base=base and start, method=method, stacked=STACKED)
  whole = {path: np.asarray(leaf) for path, leaf in trees.flatten(mixed).items()}
  streamed = load(tmp_path / 'mix')
  if is_held or method in EXACT:
    assert same_bits(streamed, whole)
    return
  for path, leaf in streamed.items():  # The sums over a tensor are rounded part by part.
    np.testing.assert_allclose(
      leaf.astype(np.float32),
      whole[path].astype(np.float32),
      rtol=1e-2 if leaf.dtype.itemsize < 4 else 1e-5,
      atol=1e-6,
    )


def test_options_are_recorded_and_another_one_is_another_mix(written, tmp_path):
  def mix(**options):
    mixing.mix_checkpoints(
      written[:2], (1, 1), tmp_path / 'mix', base=written[2], method='dare_ties', options=options
    )

  mix(density=0.5)
  assert store.load_meta(tmp_path / 'mix')['options'] == {'density': 0.5, 'lambda': 1, 'seed': 0}
  before = store.load_meta(tmp_path / 'mix')
  mix(density=0.5, seed=0)  # It is kept.
  assert store.load_meta(tmp_path / 'mix') == before
  for options in ({'density': 0.6}, {'density': 0.5, 'seed': 1}, {'density': 0.5, 'lambda': 2}):
    with pytest.raises(errors.SphinxError, match="'options'.*--output"):
      mix(**options)


@pytest.mark.parametrize('method, base', [('linear', None), ('slerp', None), ('linear', 2)])
def test_one_and_zero_give_the_first_back_bit_for_bit(written, tmp_path, small_parts, method, base):
  mixing.mix_checkpoints(
    written[:2], (1, 0), tmp_path / 'mix', method=method, base=base and written[base]
  )
  assert same_bits(load(tmp_path / 'mix'), drawn(0))


def test_the_same_mix_is_kept_and_another_refused(parents):
  inputs = [parents / 'real', parents / 'synthetic']
  mixing.mix_checkpoints(inputs, (0.5, 0.5), parents / 'mix')
  before = (parents / 'mix' / 'checkpoints' / '0').stat().st_mtime_ns
  mixing.mix_checkpoints([f'{place}/' for place in inputs], (0.5, 0.5), parents / 'mix')
  assert (parents / 'mix' / 'checkpoints' / '0').stat().st_mtime_ns == before
  for changed in (
    dict(coefficients=(0.25, 0.75)),
    dict(base=parents / 'real'),
    dict(dtype='float32'),
    dict(method='slerp'),
  ):
    with pytest.raises(errors.SphinxError, match='--output'):
      mixing.mix_checkpoints(
        **{'inputs': inputs, 'coefficients': (0.5, 0.5), 'output': parents / 'mix', **changed}
      )
  with pytest.raises(errors.SphinxError, match='a checkpoint of a training run'):
    mixing.mix_checkpoints(inputs, (0.5, 0.5), parents / 'foreign')
  with pytest.raises(errors.SphinxError, match='an input'):
    mixing.mix_checkpoints(inputs, (0.5, 0.5), parents / 'real' / 'checkpoints' / '7')


@pytest.mark.parametrize('kind', ['trained', 'converted'])
def test_a_mix_of_weights_that_changed_since_is_not_kept(tmp_path, kind):
  def make(name: str, seed: int) -> pathlib.Path:
    shutil.rmtree(tmp_path / name, ignore_errors=True)
    arrays = release.tensors(release.llama_shapes(dim=8, n_layers=1), seed=seed)
    if kind == 'converted':
      config = release.LLAMA | {'dim': 8, 'n_layers': 1, 'multiple_of': 48}
      source = release.write_meta(tmp_path / f'{name} source', arrays, config=config)
      convert.import_checkpoint(convert.open_sources([source]), tmp_path / name)
      return tmp_path / name
    with store.Store(tmp_path / name) as run:
      run.save(7, params(float(seed)), None, {'config': '{}', 'tokenizer': None})
    return tmp_path / name

  inputs = [make('a', 1), make('b', 2)]
  mixing.mix_checkpoints(inputs, (0.5, 0.5), tmp_path / 'mix')
  make('b', 2)
  mixing.mix_checkpoints(inputs, (0.5, 0.5), tmp_path / 'mix')
  make('b', 3)
  with pytest.raises(errors.SphinxError, match=f'changed since: {tmp_path}/b, .*--output'):
    mixing.mix_checkpoints(inputs, (0.5, 0.5), tmp_path / 'mix')


@pytest.mark.parametrize('value', [np.nan, -np.nan, np.inf, -np.inf])
def test_a_mix_that_is_not_finite_is_refused(written, tmp_path, value):
  other = drawn(1)
  other['llm/layers/w'][2, 3, 5] = value
  inputs = [written[0], write(tmp_path / 'other', other)]
  with pytest.raises(errors.SphinxError, match='NaN or infinity in llm/layers/w of input 2'):
    mixing.mix_checkpoints(inputs, (0.5, 0.5), tmp_path / 'mix')
  assert not (tmp_path / 'mix').exists()
  mixing.mix_checkpoints(inputs, (1, 0), tmp_path / 'mix')  # The other one is not used.


def test_another_tokenizer_is_refused(parents):
  with pytest.raises(errors.SphinxError, match='foreign.*another tokenizer'):
    mixing.mix_checkpoints([parents / 'real', parents / 'foreign'], (0.5, 0.5), parents / 'mix')


def test_models_that_compute_with_other_settings_are_refused(tmp_path):
  arrays = release.tensors(release.llama_shapes())
  places = {}
  for name, changes in {
    'first': {},
    'other rope': {'rope_theta': 500000.0},
    'other numerics': {'max_seq_len': 99, 'n_kv_heads': 4},
  }.items():
    source = release.write_meta(tmp_path / f'{name} source', arrays, config=release.LLAMA | changes)
    places[name] = tmp_path / name
    convert.import_checkpoint(convert.open_sources([source]), places[name])
  words = "other rope': got another model .llm.rope_theta: 10000.0 there, 500000.0 here."
  with pytest.raises(errors.SphinxError, match=words):
    mixing.mix_checkpoints([places['first'], places['other rope']], (0.5, 0.5), tmp_path / 'mix')
  inputs = [places['first'], places['other numerics']]
  with pytest.raises(errors.SphinxError, match=words):
    mixing.mix_checkpoints(inputs, (0.5, 0.5), tmp_path / 'mix', base=places['other rope'])
  assert not (tmp_path / 'mix').exists()
  mixing.mix_checkpoints(inputs, (0.5, 0.5), tmp_path / 'mix')
  assert same_bits(load(tmp_path / 'mix'), load(places['first']))


def test_other_leaves_are_named_before_anything_is_read(written, tmp_path, monkeypatch):
  other = drawn(1)
  other['llm/embed'] = other['llm/embed'][:7]
  del other['encoders/b']
  write(tmp_path / 'other', other)
  monkeypatch.setattr(stream.StoredArray, 'start_read', lambda *_: pytest.fail('something is read'))
  with pytest.raises(
    errors.SphinxError,
    match=r"other'.*missing encoders/b; llm/embed: shape \(7, 33\), expected \(301, 33\)",
  ):
    mixing.mix_checkpoints([written[0], tmp_path / 'other'], (0.5, 0.5), tmp_path / 'mix')
  assert not (tmp_path / 'mix').exists()


@pytest.mark.parametrize(
  'changed, words',
  [
    (dict(coefficients=(0.5, 0.6)), 'sum 1.1.*unnormalized'),
    (dict(coefficients=(0.5,)), '1 coefficients'),
    (dict(coefficients=[('llm/.*', (0.5, 0.5))]), 'no matching pattern'),
    (
      dict(coefficients=[('llm/layer/.*', (1, 0)), ('.*', (0, 1))]),
      'a rule that matches no parameter',
    ),
    (dict(coefficients=[('llm/[', (1, 0)), ('.*', (0, 1))]), 'no regular expression'),
    (dict(method='slerp', base=0), 'slerp'),
    (dict(method='cubic'), 'linear, model_stock, regmean, slerp'),
    (dict(method='ties'), 'no base'),
    (dict(method='linear', options={'density': 0.5}), 'density: got 0.5 with --method=linear'),
  ],
)
def test_wrong_arguments_leave_no_output(written, tmp_path, changed, words):
  changed = {'coefficients': (0.5, 0.5), **changed} | (
    {'base': written[0]} if 'base' in changed else {}
  )
  with pytest.raises(errors.SphinxError, match=words):
    mixing.mix_checkpoints(written[:2], changed.pop('coefficients'), tmp_path / 'mix', **changed)
  assert not (tmp_path / 'mix').exists()


def test_a_damaged_input_is_named(tmp_path):
  damaged, other = write(tmp_path / 'damaged', drawn(0)), write(tmp_path / 'other', drawn(1))
  chunk = next(file for file in damaged.glob('checkpoints/0/params/llm.embed/*') if file.is_file())
  for change in (
    lambda: chunk.write_bytes(b'version https://git-lfs'),
    lambda: chunk.write_bytes(b''),
    chunk.unlink,
  ):
    change()
    for call in (
      lambda: mixing.mix_checkpoints([other, damaged], (0.5, 0.5), tmp_path / 'mix'),
      lambda: store.load_params(damaged),
    ):
      with pytest.raises(errors.SphinxError, match='damaged/checkpoints/0.*what was saved'):
        call()
  assert not (tmp_path / 'mix').exists()


def test_a_full_disk_is_reported_and_left_clean(written, tmp_path):
  before = resource.getrlimit(resource.RLIMIT_FSIZE)
  # The table of embeddings has 40 kB.
  resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
  try:
    with pytest.raises(
      errors.SphinxError, match="mix': got 'File too large', expected a place with room.*--output"
    ):
      mixing.mix_checkpoints(written[:2], (0.5, 0.5), tmp_path / 'mix')
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
  assert not (tmp_path / 'mix').exists()
  mixing.mix_checkpoints(written[:2], (0.5, 0.5), tmp_path / 'mix')
  assert store.latest(tmp_path / 'mix') == 0


SLOW = """
import time
from sphinx_jax.checkpoint import mixing
add = mixing.linear.mix_leaf
def slow(*arguments):
  print('mixing', flush=True)
  time.sleep(0.3)
  return add(*arguments)
mixing.linear.mix_leaf = slow
import sys
mixing.mix_checkpoints(sys.argv[1:3], (0.5, 0.5), sys.argv[3])
"""


def test_killed_while_mixing_leaves_no_checkpoint_and_the_next_call_works(written, tmp_path):
  with subprocess.Popen(
    [sys.executable, '-c', SLOW, *map(str, written[:2]), str(tmp_path / 'mix')],
    stdout=subprocess.PIPE,
    text=True,
    env=os.environ | {'PYTHONPATH': os.getcwd()},
  ) as process:
    for _ in range(3):
      assert process.stdout.readline() == 'mixing\n'
    process.kill()
  assert process.returncode == -signal.SIGKILL and (tmp_path / 'mix').exists()
  assert store.latest(tmp_path / 'mix') is None
  mixing.mix_checkpoints(written[:2], (0.5, 0.5), tmp_path / 'mix')
  assert [path.name for path in (tmp_path / 'mix' / 'checkpoints').iterdir()] == ['0']
  mixing.mix_checkpoints(written[:2], (0.5, 0.5), tmp_path / 'unbroken')
  assert same_bits(load(tmp_path / 'mix'), load(tmp_path / 'unbroken'))


LARGE = """
import re, sys
import numpy as np
from sphinx_jax.checkpoint import mixing, stream
stream._WHOLE.clear()  # Parts that are not written are zero.
# 2.6 GB, not stacked.
leaf = stream.Array((65_000, 10_000), np.dtype(np.float32), None)
for name in ('a', 'b'):
  stream.Writer(f'{sys.argv[1]}/{name}', {'params': {'w': leaf}}, {'config': '{}'}).finish()
mixing.mix_checkpoints([f'{sys.argv[1]}/a', f'{sys.argv[1]}/b'], (0.5, 0.5), f'{sys.argv[1]}/mix')
# ru_maxrss would start at the peak of the parent process.
print(int(re.search(r'VmHWM:\\s+(\\d+) kB', open('/proc/self/status').read())[1]) / 2**20)
"""


def test_memory_is_bounded_whatever_the_size_of_a_leaf(tmp_path):
  done = subprocess.run(
    [sys.executable, '-c', LARGE, str(tmp_path)],
    capture_output=True,
    text=True,
    env=os.environ | {'PYTHONPATH': os.getcwd()},
  )
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) < 2
  assert stream.read(tmp_path / 'mix')['w'].shape == (65_000, 10_000)


def test_buckets_work_like_folders(written, tmp_path, small_parts):
  folder = tmp_path / 'buckets'
  (folder / 'models').mkdir(parents=True)
  with bucket.bucket(folder) as requests:
    places = [write(f'gs://models/run{seed}', drawn(seed)) for seed in range(2)]
    broken = stream.Writer('gs://models/mix', {'params': drawn(0)}, {})  # It never finishes.
    broken.write('params', 'llm/embed', drawn(0)['llm/embed'])
    assert store.latest('gs://models/mix') is None
    mixing.mix_checkpoints(places, (0.25, 0.75), 'gs://models/mix')
    meta, mixed = store.load_meta('gs://models/mix'), load('gs://models/mix')
    with pytest.raises(errors.SphinxError, match='--output'):
      mixing.mix_checkpoints(places, (0.5, 0.5), 'gs://models/mix')
  assert any('POST' in line and 'mix' in line for line in requests) and any(
    'GET' in line and 'run1' in line for line in requests
  )
  mixing.mix_checkpoints(written[:2], (0.25, 0.75), tmp_path / 'mix')
  assert (
    same_bits(mixed, load(tmp_path / 'mix'))
    and meta['hash'] == store.load_meta(tmp_path / 'mix')['hash']
  )
  assert [parent['directory'] for parent in meta['parents']] == places


def test_the_command_with_rules(parents, capsys):
  code, _, stderr = command.run(
    capsys,
    'mix_weights',
    f'--inputs={parents}/real,{parents}/synthetic',
    '--coefficients=0.5,0.5',
    '--rule=encoders/.*=0,1',
    '--rule=encoders/w=1,0',
    f'--output={parents}/mix',
    '--dtype=float32',
  )
  assert code == 0, stderr
  assert "rule 'encoders/w' decides nothing: earlier rules match first" in stderr
  mixed = store.load_params(parents / 'mix')
  assert float(mixed['llm']['w'][0, 0]) == 2 and float(mixed['encoders']['w'][0]) == 3
  assert mixed['encoders']['w'].dtype == jnp.float32
  assert store.load_meta(parents / 'mix')['coefficients'][0] == ['encoders/.*', [0, 1]]


def test_the_command_with_a_method(parents, capsys):
  inputs = [f'--inputs={parents}/real,{parents}/synthetic', f'--output={parents}/mix']
  based = [*inputs, f'--base={parents}/real', '--method=ties']
  options = ['--coefficients=1,1', '--density=0.5', '--lambda=0.5']
  code, _, stderr = command.run(capsys, 'mix_weights', *based, *options)
  assert code == 0, stderr
  assert float(store.load_params(parents / 'mix')['llm']['w'][0, 0]) == 2  # 1 + 0.5 * (3 - 1)
  assert store.load_meta(parents / 'mix')['options'] == {'density': 0.5, 'lambda': 0.5}
  for wrong, words in (
    (based, '--coefficients: got nothing'),
    ([*based, *options, '--gamma=0.1'], '--gamma: got 0.1 with --method=ties.*breadcrumbs'),
    ([*based, *options, '--statistics=a,b'], 'statistics, expected none'),
    ([*based, *options, '--rank=4'], '--method: got ties with --rank'),
    (
      [*inputs, '--coefficients=1,0', '--rank=4', '--density=0.5'],
      '--density: got 0.5 with --rank',
    ),
  ):
    assert re.search(words, command.error(capsys, 'mix_weights', *wrong))


def test_the_command_needs_no_coefficients_if_the_method_finds_them(parents, capsys):
  code, _, stderr = command.run(
    capsys,
    'mix_weights',
    f'--inputs={parents}/synthetic,{parents}/synthetic',
    f'--base={parents}/real',
    '--method=model_stock',
    f'--output={parents}/mix',
  )
  assert code == 0, stderr
  np.testing.assert_allclose(store.load_params(parents / 'mix')['llm']['w'], 3, rtol=1e-6)


def test_the_command_reports_an_error_in_one_line(parents, capsys):
  line = command.error(
    capsys,
    'mix_weights',
    f'--inputs={parents}/real,{parents}/nowhere',
    '--coefficients=0.5,0.5',
    f'--output={parents}/mix',
  )
  assert line.startswith('error: checkpoint') and 'no such directory' in line


@pytest.mark.parametrize(
  'call, words',
  [
    (
      lambda: mix_weights._parse_numbers(['0.5', 'half'], '--coefficients'),
      '--coefficients: got 0.5,half',
    ),
    (lambda: mix_weights._parse_rules(['llm'], (0.5, 0.5)), '--rule: got llm'),
  ],
)
def test_mistyped_flags_are_named(call, words):
  with pytest.raises(errors.SphinxError, match=words):
    call()
