import collections
import logging
import pickle
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
import torch

from sphinx_jax.checkpoint.foreign import pth, pth_writer
from sphinx_jax.checkpoint.foreign.tensors import Tensor
from sphinx_jax.core import errors, progress

DTYPES = [
  torch.float32,
  torch.float16,
  torch.bfloat16,
  torch.float64,
  torch.int64,
  torch.int32,
  torch.int16,
  torch.int8,
  torch.uint8,
  torch.bool,
  torch.complex64,
  torch.complex128,
]


def every_kind() -> dict[str, torch.Tensor]:
  """All dtypes, and all kinds of views of a storage."""
  whole = torch.arange(24.0).reshape(4, 6)
  tensors = {f'dtype.{dtype}': torch.randn(3, 5).mul(3).to(dtype) for dtype in DTYPES}
  return tensors | {
    'rows': whole[1:3],
    'columns': whole[:, 2:4],
    'transposed': whole.t(),
    'whole': whole,
    'tied': whole,
    'every other': whole.reshape(-1)[1::2],
    'expanded': torch.tensor([[1.0], [2.0]]).expand(2, 3),
    'scalar': torch.tensor(2.5),
    'empty': torch.zeros(0, 4),
    'one row': torch.arange(5).expand(1, -1),
    'parameter': torch.nn.Parameter(torch.ones(2)),
  }


def raw(tensor: torch.Tensor) -> bytes:
  return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def same(ours: dict[str, Tensor], theirs: dict[str, torch.Tensor]) -> bool:
  def equal(key):
    array = ours[key].read()
    assert (
      array.shape == ours[key].shape and array.dtype == ours[key].dtype and array.flags.writeable
    )
    return (
      array.shape == tuple(theirs[key].shape)
      and f'torch.{array.dtype}' == str(theirs[key].dtype)
      and array.tobytes() == raw(theirs[key])
    )

  return list(ours) == list(theirs) and all(map(equal, ours))


def tensor(array: np.ndarray) -> Tensor:
  return Tensor(array.shape, array.dtype, array.copy)


def with_pickle(path, data: bytes, records=(('data/0', bytes(16)),)):
  """Writes an archive as torch.save does, with the given pickle."""
  with zipfile.ZipFile(path, 'w') as archive:
    for name, content in (('data.pkl', data), ('version', b'3\n'), *records):
      archive.writestr('a/' + name, content)
  return path


def stored(shape=(2, 2), strides=(2, 1), offset=0, size=4, key='0') -> bytes:
  """The pickle of {'w': a float32 tensor}, as our writer makes it, with any numbers in it."""

  def integer(value):
    return pickle.BININT + struct.pack('<i', value)

  def ints(values):
    return pth_writer._tuple(*map(integer, values))

  text, name = pth_writer._text, pth_writer._global
  storage = (
    pth_writer._tuple(
      text('storage'), name('torch', 'FloatStorage'), text(key), text('cpu'), integer(size)
    )
    + b'Q'
  )
  arguments = pth_writer._tuple(
    storage, integer(offset), ints(shape), ints(strides), pickle.NEWFALSE, pickle.NONE
  )
  return b'\x80\x02}' + text('w') + name('torch._utils', '_rebuild_tensor_v2') + arguments + b'Rs.'


def test_every_dtype_and_view_of_torch_is_read_bit_for_bit(tmp_path):
  tensors = every_kind()
  torch.save({'model': tensors}, tmp_path / 'a.pth')
  assert same(pth.open_pth(tmp_path / 'a.pth'), tensors)


@pytest.mark.parametrize('mmap', [False, True])
def test_torch_reads_what_we_write(tmp_path, mmap):
  tensors = every_kind()
  torch.save(tensors, tmp_path / 'a.pth')
  pth_writer.write_pth(tmp_path / 'b.pth', pth.open_pth(tmp_path / 'a.pth'), 'state_dict')
  top = torch.load(tmp_path / 'b.pth', weights_only=True, mmap=mmap)
  assert list(top) == ['state_dict'] and list(top['state_dict']) == list(tensors)
  for key, ours in top['state_dict'].items():
    assert (
      ours.dtype == tensors[key].dtype
      and ours.shape == tensors[key].shape
      and raw(ours) == raw(tensors[key])
    ), key
    assert ours.is_contiguous() and (not mmap or ours.data_ptr() % 64 == 0)
  assert same(pth.open_pth(tmp_path / 'b.pth'), tensors)


def test_the_same_tensors_give_the_same_bytes(tmp_path):
  for name in 'ab':
    pth_writer.write_pth(tmp_path / name, {'w': tensor(np.arange(6.0))})
  assert (tmp_path / 'a').read_bytes() == (tmp_path / 'b').read_bytes()


@pytest.mark.parametrize('wrapper', ['model', 'state_dict', 'teacher', None])
def test_the_mapping_of_tensors_is_found(tmp_path, wrapper, caplog, monkeypatch):
  monkeypatch.setattr(progress.log, 'propagate', True)
  caplog.set_level(logging.INFO, logger='sphinx_jax')
  weights = torch.nn.Linear(2, 3).state_dict()  # An OrderedDict with additional attributes.
  top = (
    weights | {'epoch': 3}
    if wrapper is None
    else {'step': torch.tensor(7), wrapper: weights, 'epoch': 3}
  )
  torch.save(top, tmp_path / 'a.pth')
  assert same(pth.open_pth(tmp_path / 'a.pth'), dict(weights))
  assert len(caplog.messages) == 1 and 'epoch' in caplog.messages[0]


def test_plain_values_of_torch_beside_the_weights_do_no_harm(tmp_path):
  top = {
    'model': {'w': torch.ones(2)},
    'dtype': torch.bfloat16,
    'device': torch.device('cuda:0'),
    'shape': torch.Size([2, 3]),
  }
  torch.save(top, tmp_path / 'a.pth')
  assert same(pth.open_pth(tmp_path / 'a.pth'), top['model'])


def test_two_models_in_one_file_are_ambiguous(tmp_path):
  torch.save({'model': {'w': torch.ones(2)}, 'teacher': {'w': torch.ones(2)}}, tmp_path / 'a.pth')
  with pytest.raises(errors.SphinxError, match='several models .model, teacher.'):
    pth.open_pth(tmp_path / 'a.pth')


@pytest.mark.parametrize(
  'top', [{'epoch': 3}, {'model': {'block': {'w': torch.ones(2)}}}, [torch.ones(2)], 3, {}]
)
def test_a_file_without_a_mapping_of_tensors_is_refused(tmp_path, top):
  torch.save(top, tmp_path / 'a.pth')
  with pytest.raises(errors.SphinxError, match='a.pth: .*mapping of'):
    pth.open_pth(tmp_path / 'a.pth')


class Small(torch.nn.Module):
  """A module like CLIP: half-precision blocks, a scalar parameter, a buffer, plain attributes."""

  def __init__(self):
    super().__init__()
    self.blocks = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.LayerNorm(2)).half()
    self.scale = torch.nn.Parameter(torch.tensor(1.5))
    self.register_buffer('mask', torch.arange(4))
    self.width, self.sizes, self.tensors = 2, [1, 2], [torch.ones(2)]

  def forward(self, x):
    return self.blocks(x.half()).float() * self.scale + torch.tensor([1.0, 2.0])


@pytest.mark.filterwarnings('ignore::torch.jit.TracerWarning')
@pytest.mark.parametrize(
  'make', [torch.jit.script, lambda module: torch.jit.trace(module, torch.ones(1, 2))]
)
def test_a_torchscript_archive_gives_its_tensors_by_dotted_name(tmp_path, make):
  module = Small()
  make(module).save(tmp_path / 'a.pt')
  ours = pth.open_pth(tmp_path / 'a.pt')
  assert same(dict(sorted(ours.items())), dict(sorted(module.state_dict().items())))


@pytest.mark.parametrize(
  'body',
  [
    b'c__torch__\nM\n)\x81q\x00}X\x04\x00\x00\x00selfh\x00sb.',  # A module that holds itself.
    b'c__torch__\nM\n)\x81}X\x04\x00\x00\x00sizeK\x01sb.',  # One without tensors.
  ],
)
def test_a_torchscript_module_without_end_or_tensors_is_refused(tmp_path, body):
  with pytest.raises(errors.SphinxError):
    pth.open_pth(with_pickle(tmp_path / 'a.pt', b'\x80\x02' + body))


class Evil:
  """An object whose pickle calls a function."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def attacks(command: str) -> dict[str, tuple[bytes, str]]:
  """Name of an attack -> (a pickle that runs a shell command, the function that it calls)."""
  import os  # The pickles call its functions.

  text = pth_writer._text(command)
  code = f'__import__("os").system({command!r})'
  return {
    'reduce': (pickle.dumps({'w': Evil(os.system, command)}, 2), 'posix.system|nt.system'),
    'reduce eval': (pickle.dumps(Evil(eval, code), 2), r'(__builtin__|builtins)\.eval'),
    'stack global': (pickle.dumps(Evil(os.system, command), 4), 'posix.system|nt.system'),
    'inst': (b'(' + text + b'ios\nsystem\n.', 'os.system'),
    'obj': (b'(cos\nsystem\n' + text + b'o.', 'os.system'),
    'newobj': (b'\x80\x02csubprocess\nPopen\n' + text + b'\x85\x81.', 'subprocess.Popen'),
    'dotted': (
      b'\x80\x04\x8c\x0bcollections\x8c\x20OrderedDict.__init__.__globals__\x93.',
      'OrderedDict.__init__',
    ),
    'build': (b'\x80\x02ccollections\nnamedtuple\n.', 'collections.namedtuple'),
    'torch': (b'\x80\x02ctorch\nload\nX\x01\x00\x00\x00a\x85R.', 'torch.load'),
    'storage bytes': (
      b'\x80\x02ctorch.storage\n_load_from_bytes\nC\x01a\x85R.',
      '_load_from_bytes',
    ),
  }


@pytest.mark.parametrize('name', attacks(''))
def test_a_pickle_that_would_run_code_is_refused_by_name_and_not_run(tmp_path, name):
  witness = tmp_path / 'witness'
  data, called = attacks(f'touch {witness}')[name]
  with pytest.raises(
    errors.SphinxError, match=f'(?s)a.pth: got a pickle that asks for .*({called}).*would run code'
  ):
    pth.open_pth(with_pickle(tmp_path / 'a.pth', data))
  assert not witness.exists()


def test_the_attacks_are_real(tmp_path):
  for name in ('reduce', 'reduce eval', 'stack global', 'inst', 'obj'):
    witness = tmp_path / name.replace(' ', '_')
    pickle.loads(attacks(f'touch {witness}')[name][0])
    assert witness.exists(), name


def test_a_pickle_cannot_change_what_the_next_file_meets(tmp_path):
  name = pth_writer._text('__setstate__')
  for target in (
    b'ccollections\nOrderedDict\n',
    b'ctorch\nSize\n',
    b'c__torch__\nM\n',
    b'ctorch\nFloatStorage\n',
    b'ctorch._utils\n_rebuild_tensor_v2\n',
    stored()[2:-2],
  ):
    # BUILD with (None, {'__setstate__': 1}) sets attributes.
    data = b'\x80\x02' + target + b'N}' + name + b'K\x01s\x86b.'
    with pytest.raises(errors.SphinxError):
      pth.open_pth(with_pickle(tmp_path / 'a.pth', data))
  assert not hasattr(collections.OrderedDict, '__setstate__') and not hasattr(
    pth._Attributes, '__setstate__'
  )
  torch.save({'w': torch.ones(2)}, tmp_path / 'b.pth')
  assert same(pth.open_pth(tmp_path / 'b.pth'), {'w': torch.ones(2)})


def test_the_hand_made_archive_of_these_tests_is_valid(tmp_path):
  path = with_pickle(
    tmp_path / 'a.pth', stored(), [('data/0', np.arange(4, dtype=np.float32).tobytes())]
  )
  np.testing.assert_array_equal(pth.open_pth(path)['w'].read(), [[0, 1], [2, 3]])
  assert torch.load(path, weights_only=True)['w'].tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
  'view',
  [
    {'offset': 1},
    {'strides': (3, 1)},
    {'shape': (3, 2)},
    {'offset': -1},
    {'strides': (-2, 1)},
    {'shape': (-2, 2)},
    {'size': 5},
    {'size': -1},
    {'strides': (1,)},
    {'key': '1'},
    {'key': '../data.pkl'},
    {'shape': (1 << 30, 1 << 30)},
  ],
)
def test_a_tensor_outside_of_its_storage_is_refused(tmp_path, view):
  with pytest.raises(errors.SphinxError, match='a.pth: got a damaged'):
    pth.open_pth(with_pickle(tmp_path / 'a.pth', stored(**view)))


def test_a_tensor_that_repeats_one_number_beyond_all_memory_is_refused_when_read(tmp_path):
  path = with_pickle(tmp_path / 'a.pth', stored(shape=(1 << 30, 1 << 30), strides=(0, 0)))
  with pytest.raises(errors.SphinxError, match='a.pth'):
    pth.open_pth(path)['w'].read()


def test_another_byte_order_is_refused(tmp_path):
  with pytest.raises(errors.SphinxError, match="byte order b'big'"):
    pth.open_pth(
      with_pickle(tmp_path / 'a.pth', stored(), [('data/0', bytes(16)), ('byteorder', b'big')])
    )


def test_compressed_records_are_refused_because_their_size_is_not_certain(tmp_path):
  with zipfile.ZipFile(tmp_path / 'a.pth', 'w', zipfile.ZIP_DEFLATED) as archive:
    archive.writestr('a/data.pkl', stored(size=1 << 20, shape=(1 << 20,), strides=(1,)))
    archive.writestr('a/data/0', bytes(4 << 20))
  with pytest.raises(errors.SphinxError, match='compressed'):
    pth.open_pth(tmp_path / 'a.pth')


def legacy(path):
  torch.save({'w': torch.ones(2)}, path, _use_new_zipfile_serialization=False)


def cut(path):
  torch.save({'w': torch.ones(2)}, path)
  path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
  'make, looks',
  [
    (legacy, 'before release 1.6.*torch.save.torch.load'),
    (
      lambda path: path.write_text('\n<!DOCTYPE html><html>404</html>'),
      'a web page.*download it again',
    ),
    (
      lambda path: path.write_text(
        'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n'
      ),
      'git lfs pull',
    ),
    (lambda path: path.write_bytes(b''), 'an empty file'),
    (cut, 'cut short'),
    (lambda path: path.write_bytes(pickle.dumps({'w': 1})), 'an unknown kind'),
    (lambda path: path.write_bytes(b'hello'), 'an unknown kind'),
    (lambda path: np.savez(path.open('wb'), w=np.ones(2)), '0 records named data.pkl'),
    (lambda path: path.mkdir(), 'no such file'),
    (lambda path: None, 'no such file'),
  ],
)
def test_files_of_another_kind_are_named(tmp_path, make, looks):
  make(tmp_path / 'a.pth')
  with pytest.raises(errors.SphinxError, match=f'a.pth: got .*{looks}'):
    pth.open_pth(tmp_path / 'a.pth')


def test_a_flipped_byte_is_noticed_by_every_tensor_of_its_storage_and_no_other(tmp_path):
  shared = torch.arange(1000.0)
  torch.save({'low': shared[:10], 'high': shared[500:], 'other': torch.ones(3)}, tmp_path / 'a.pth')
  data = bytearray((tmp_path / 'a.pth').read_bytes())
  data[bytes(data).index(shared[700:710].numpy().tobytes())] ^= 1
  (tmp_path / 'a.pth').write_bytes(data)
  opened = pth.open_pth(tmp_path / 'a.pth')
  for key in ('low', 'high'):
    with pytest.raises(errors.SphinxError, match='a.pth.*CRC'):
      opened[key].read()
  assert opened['other'].read().tolist() == [1, 1, 1]


def peak(call) -> int:
  tracemalloc.start()
  try:
    call()
    return tracemalloc.get_traced_memory()[1]
  finally:
    tracemalloc.stop()


def test_a_tensor_is_in_memory_once(tmp_path):
  size, small = 8 << 20, 1 << 20
  tensors = {
    f'{i}': Tensor((size // 4,), np.dtype(np.float32), lambda: np.zeros(size // 4, np.float32))
    for i in range(4)
  }
  assert peak(lambda: pth_writer.write_pth(tmp_path / 'a.pth', tensors)) < size + small
  assert peak(lambda: pth.open_pth(tmp_path / 'a.pth')) < small
  opened = pth.open_pth(tmp_path / 'a.pth')
  assert peak(lambda: [tensor.read().sum() for tensor in opened.values()]) < size + small
  # The file holds all of its storage.
  torch.save({'part': torch.zeros(size // 4)[100:200]}, tmp_path / 'b.pth')
  assert peak(lambda: pth.open_pth(tmp_path / 'b.pth')['part'].read()) < small


@pytest.mark.parametrize(
  'data',
  [
    # Memoizes an object as number 2**24 - 1: the unpickler in C makes a table of that length.
    b'\x80\x02}r\xff\xff\xff\x00.',
    # Announces bytes that the file does not have.
    b'\x80\x04\x8e' + struct.pack('<Q', 1 << 40) + b'.',
  ],
)
def test_numbers_in_a_pickle_take_no_memory(tmp_path, data):
  def read():
    with pytest.raises(errors.SphinxError):
      pth.open_pth(with_pickle(tmp_path / 'a.pth', data))

  assert peak(read) < 1 << 20


def fails() -> np.ndarray:
  raise KeyboardInterrupt


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
  broken = {'a': tensor(np.ones(3)), 'b': Tensor((3,), np.dtype(np.float64), fails)}
  with pytest.raises(KeyboardInterrupt):
    pth_writer.write_pth(tmp_path / 'a.pth', broken)
  assert not list(tmp_path.iterdir())
  pth_writer.write_pth(tmp_path / 'a.pth', {'a': tensor(np.ones(3))})
  before = (tmp_path / 'a.pth').read_bytes()
  with pytest.raises(KeyboardInterrupt):
    pth_writer.write_pth(tmp_path / 'a.pth', broken)
  assert [path.name for path in tmp_path.iterdir()] == ['a.pth'] and (
    tmp_path / 'a.pth'
  ).read_bytes() == before


@pytest.mark.parametrize(
  'bad, message',
  [
    (
      Tensor((2,), np.dtype(np.uint16), lambda: np.zeros(2, np.uint16)),
      'tensor w: got dtype uint16',
    ),
    (
      Tensor((2,), np.dtype(np.float32), lambda: np.zeros(3, np.float32)),
      r'tensor w: got float32\[3\]',
    ),
    (
      Tensor((2,), np.dtype(np.float32), lambda: np.zeros(2, np.float64)),
      r'tensor w: got float64\[2\]',
    ),
  ],
)
def test_a_tensor_that_cannot_be_written_is_named(tmp_path, bad, message):
  with pytest.raises(errors.SphinxError, match=message):
    pth_writer.write_pth(tmp_path / 'a.pth', {'w': bad})
  assert not list(tmp_path.iterdir())
