"""What plan counts, against XLA's own answers for the same programs on this machine's devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sphinx_jax.models import families
from sphinx_jax.parallel import mesh as meshes
from sphinx_jax.planning import activations, compiler_dumps, flops, leaves
from sphinx_jax.run import Program
from tests.models import idefics2_golden
from tests.tiny import tiny

LAYERS = 3


def wide(**changes):
  """Wide, so that products are nearly all FLOP, and without loops, whose trips XLA counts once."""
  return tiny(
    **{
      'model.llm.width': 128,
      'model.llm.layers': LAYERS,
      'model.scan_unroll': LAYERS,
      'model.llm.vocab': 256,
      'model.encoders.clip.width': 64,
      'batch.seq_len': 64,
      'batch.window': 64,
      'model.attention': 'xla',
      **changes,
    }
  )


@pytest.mark.parametrize(
  'changes',
  [
    {'model.remat': 'full'},
    {'trainable': (('.*', 'train'),)},
    pytest.param({}, marks=pytest.mark.slow),  # The simplest case.
  ],
)
def test_products_are_those_that_xla_counts(changes):
  config = wide(**changes)
  program = Program(config)
  names = families.part_names(config.model)
  counted = flops.count(program.trace(), names, flops.loss_chunks(config))
  by_xla = program.lower().compile().cost_analysis()['flops']
  assert sum(counted.parts.values()) + counted.recomputed == pytest.approx(by_xla, rel=0.05)
  assert (counted.recomputed > 0) == ('model.remat' in changes)
  assert {'llm', 'lm_head', 'clip', 'visual_proj'} <= set(counted.parts)


def test_loops_are_counted_with_their_trips():
  looped, flat = (
    flops.count(Program(config).trace(), families.part_names(config.model), 1)
    for config in (wide(**{'model.scan_unroll': 1}), wide(**{'model.scan_unroll': LAYERS}))
  )
  assert looped == flat


def test_the_lm_head_counts_for_all_positions():
  """Whatever the chunks in which the update computes as many of them as have loss weight."""
  whole, in_chunks = (
    flops.count(Program(config).trace(), ('llm',), flops.loss_chunks(config))
    for config in (tiny(), tiny(loss_chunk=4))
  )
  positions, width, vocab = 8 * 16, tiny().model.llm.width, tiny().model.llm.vocab
  assert whole == in_chunks
  assert whole.parts['lm_head'] == 3 * 2 * positions * width * vocab


def test_parts_and_needs_of_another_family_are_counted():
  """Frozen vision is computed once; what is trained three times, without the first gradient."""
  trainable = (('vision/.*', 'frozen'), ('.*', 'train'))
  config = tiny(**{'batch.images': 3, 'trainable': trainable}).unlock()
  config.model = idefics2_golden.config(remat='full')
  trace, names = Program(config).trace(), families.part_names(config.model)
  parts = flops.count(trace, names, 1).parts
  assert set(parts) == {'vision', 'projection', 'perceiver', 'llm', 'lm_head', 'other'}
  images, patches = 3 * config.batch.size, 7 * 7
  layer = patches * (4 * 32 * 32 + 2 * 32 * 72) + 2 * patches**2 * 32
  assert parts['vision'] == 2 * images * (patches * 14 * 14 * 3 * 32 + 2 * layer)
  weights = 32 * 96, 32 * 96, 96 * 48
  assert parts['projection'] == 2 * images * patches * (2 * sum(weights) + weights[2])

  needs = activations.needs(trace, names)
  layers, width, latents = 2, 48, 4
  assert ((layers, config.batch.size, config.batch.seq_len, width), 4) in needs.stacks
  # What the products of the projection take and give, with its gradient; and what the loop of the
  # perceiver keeps.
  kept = patches * (2 * (32 + 96) + 96 + width)
  assert needs.images == 4 * images * (2 * kept + layers * latents * width)
  config.trainable = (('llm/.*', 'train'), ('.*', 'frozen'))
  needs = activations.needs(Program(config).trace(), names)
  assert needs.images == 4 * images * 4 * patches**2  # The scores of four heads alone.


def test_resident_bytes_are_those_that_the_compiler_takes():
  program = Program(tiny(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2}))
  resident = leaves.resident_leaves(program)
  arguments = program.lower().compile().memory_analysis().argument_size_in_bytes
  assert sum(leaf.local_nbytes for leaf in resident) == pytest.approx(arguments, rel=0.01)
  kinds = leaves.resident_bytes(resident)
  assert kinds['gradients'] == kinds['trained']
  assert kinds['optimizer'] >= kinds['trained'] > kinds['frozen'] > 0


def test_large_leaves_on_every_device_are_named():
  copies = leaves.replicated(
    leaves.resident_leaves(Program(tiny(**{'mesh.data': 8, 'model.llm.vocab': 70_000}))), 8
  )
  names = [leaf.path for leaf in copies]
  assert 'llm/output/kernel' in names
  assert all('embed' in name or 'output' in name for name in names)
  split = Program(tiny(**{'mesh.fsdp': 8, 'model.llm.vocab': 70_000}))
  assert leaves.replicated(leaves.resident_leaves(split), 8) == []


def test_leaves_of_one_device_are_not_called_replicated():
  program = Program(tiny(**{'model.llm.vocab': 70_000}))
  assert leaves.replicated(leaves.resident_leaves(program), 1) == []
  assert np.prod(program.mesh.devices.shape) == 1


def test_collectives_of_a_loop_are_counted_by_layer():
  mesh = meshes.make_mesh(fsdp=8)
  on = lambda *spec: NamedSharding(mesh, PartitionSpec(*spec))

  def net(weights, x):
    def layer(x, kernel):
      kernel = jax.lax.with_sharding_constraint(kernel, on())
      return jax.lax.with_sharding_constraint(jnp.tanh(x @ kernel), on('fsdp')), None

    return jax.lax.scan(layer, x, weights)[0].sum()

  shapes = (
    jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=on(None, 'fsdp')),
    jax.ShapeDtypeStruct((32, 64), jnp.float32, sharding=on('fsdp')),
  )
  text = jax.jit(net).lower(*shapes).compile().as_text()
  by_kind = {item.kind: item for item in compiler_dumps.collectives(text)}
  gather, reduce = by_kind['all-gather'], by_kind['all-reduce']
  assert (gather.trips, gather.count, gather.nbytes) == (5, 1, 64 * 64 * 4)
  assert (reduce.loop, reduce.trips, reduce.count, reduce.nbytes) == ('once', 1, 1, 4)


TPU_TEXT = """HloModule jit_step
%all-reduce-scatter.2.clone (input.1: bf16[5120,32]) -> bf16[1280,32] {
  %input.1 = bf16[5120,32]{1,0} parameter(0)
  %all-reduce.3 = bf16[5120,32]{1,0} all-reduce(%input.1), channel_id=1, to_apply=%add
  ROOT %dynamic-slice.4 = bf16[1280,32]{1,0} dynamic-slice(%all-reduce.3)
}

ENTRY %main (p.1: bf16[1280,32]) -> bf16[1280,32] {
  %p.1 = bf16[1280,32]{1,0} parameter(0)
  %all-gather-start.1 = (bf16[1280,32]{1,0}, bf16[5120,32]{1,0}) all-gather-start(%p.1)
  %all-gather-done.1 = bf16[5120,32]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %fusion.1 = bf16[1280,32] fusion(%all-gather-done.1), calls=%all-reduce-scatter.2.clone
}
"""


def test_kinds_that_only_a_tpu_compiles_to():
  """As libtpu 0.0.42.1 writes them: an asynchronous gather, and a scatter as a fusion."""
  whole = 5120 * 32 * 2
  found = compiler_dumps.collectives(TPU_TEXT)
  assert sorted((item.kind, item.count, item.nbytes) for item in found) == [
    ('all-gather', 1, whole),
    ('reduce-scatter', 1, whole),
  ]


UNROLLED_TEXT = """HloModule jit_step
%body (p: (u32[], bf16[128,32])) -> (u32[], bf16[128,32]) {
  %p = (u32[], bf16[128,32]{1,0}) parameter(0)
  %two = u32[] constant(2)
  %mask = u32[] constant(7)
  %i = u32[] get-tuple-element(%p), index=0
  %part = bf16[128,32]{1,0} get-tuple-element(%p), index=1
  %first = bf16[128,32]{1,0} collective-permute(%part), source_target_pairs={{0,1},{1,0}}
  %second = bf16[128,32]{1,0} collective-permute(%first), source_target_pairs={{0,1},{1,0}}
  %next = u32[] add(%i, %two)
  ROOT %tuple = (u32[], bf16[128,32]{1,0}) tuple(%next, %second)
}

%condition (q: (u32[], bf16[128,32])) -> pred[] {
  %q = (u32[], bf16[128,32]{1,0}) parameter(0)
  %four = u32[] constant(4)
  %j = u32[] get-tuple-element(%q), index=0
  ROOT %less = pred[] compare(%j, %four), direction=LT
}

ENTRY %main (a: (u32[], bf16[128,32])) -> (u32[], bf16[128,32]) {
  %a = (u32[], bf16[128,32]{1,0}) parameter(0)
  ROOT %loop = (u32[], bf16[128,32]{1,0}) while(%a), condition=%condition, body=%body
}
"""


def test_trips_of_an_unrolled_loop_are_its_limit_over_its_step():
  """As libtpu writes the scatter of a gradient inside the product that makes it."""
  (found,) = compiler_dumps.collectives(UNROLLED_TEXT)
  assert (found.kind, found.trips, found.count) == ('collective-permute', 2, 2)
  assert found.nbytes == 2 * 128 * 32 * 2


ASSIGNMENT = """BufferAssignment:
allocation 0: size 64, parameter 0:
 value: <1 p.1 @0> (size=64,offset=0): f32[16]{0}
allocation 1: size 4096, preallocated-temp:
 value: <2 fusion.1{0} @0> (size=2048,offset=0): f32[512]{0}
 value: <3 fusion.2 (phi) @0> (size=1024,offset=1024): f32[256]{0}
 value: <4 fusion.3 @0> (size=512,offset=2048): f32[128]{0}
"""


class Text:
  """A compiled program with the given HLO text."""

  def __init__(self, text):
    self._text = text

  def as_text(self):
    return self._text


def test_largest_buffers_do_not_overlap(tmp_path):
  (tmp_path / 'module_1.jit_step.tpu-buffer-assignment.txt').write_text(ASSIGNMENT)
  details = compiler_dumps.read(Text(TPU_TEXT), tmp_path)
  assert [(buffer.name, buffer.nbytes) for buffer in details.buffers] == [
    ('fusion.1', 2048),
    ('fusion.3', 512),
  ]
  assert len(details.collectives) == 2 and details.problems == {}


@pytest.mark.parametrize('text', ['', 'HloModule in another format', None])
@pytest.mark.parametrize('assignment', [None, b'', b'allocations: another format', b'\xff\xfe'])
def test_dumps_that_cannot_be_read_are_reported_and_raise_nothing(tmp_path, text, assignment):
  if assignment is not None:
    (tmp_path / 'module_1.jit_step.tpu-buffer-assignment.txt').write_bytes(assignment)
  details = compiler_dumps.read(Text(text), tmp_path)
  assert details.buffers == details.collectives == ()
  assert set(details.problems) == {'largest buffers', 'collectives'}
  assert all(reason and '\n' not in reason for reason in details.problems.values())


@pytest.mark.parametrize(
  'message, nbytes',
  [
    ('RESOURCE_EXHAUSTED: Used 1.50G of 1.00G hbm', int(1.5 * 2**30)),
    ('RESOURCE_EXHAUSTED: the program (2.00M) exceeds', 2 * 2**20),
    ('RESOURCE_EXHAUSTED in other words', 0),
  ],
)
def test_bytes_that_a_refused_program_asks_for(message, nbytes):
  assert compiler_dumps.requested_bytes(message) == nbytes
