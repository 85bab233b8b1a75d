"""What plan counts, against XLA's own answers for the same programs on this machine's devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from sphinx_jax.parallel import mesh as meshes
from sphinx_jax.planning import flops, hlo, leaves
from sphinx_jax.run import Program
from tests.tiny import tiny

LAYERS = 3


def wide(**changes):
  """Wide enough for products to be nearly all of the arithmetic, and without loops, whose trips XLA counts once."""
  return tiny(
    **{
      'model.llm.width': 128,
      'model.llm.layers': LAYERS,
      'model.scan_unroll': LAYERS,
      'model.llm.vocab': 256,
      'model.encoders.clip.width': 64,
      'batch.seq_len': 64,
      'batch.window': 64,
      'optimizer.name': 'adamw',
      'model.attention': 'xla',
      **changes,
    }
  )


@pytest.mark.parametrize(
  'changes', [{}, {'model.remat': 'full'}, {'trainable': (('.*', 'train'),)}]
)
def test_products_are_those_that_xla_counts(changes):
  program = Program(wide(**changes))
  parts, again = flops.count(program.trace())
  counted = program.lower().compile().cost_analysis()['flops']
  assert sum(parts.values()) + again == pytest.approx(counted, rel=0.05)
  assert (again > 0) == ('model.remat' in changes) and {
    'llm',
    'head',
    'clip',
    'visual_proj',
  } <= set(parts)


def test_loops_are_counted_with_their_trips():
  looped, flat = (
    flops.count(Program(wide(**{'model.scan_unroll': unroll})).trace()) for unroll in (1, LAYERS)
  )
  assert looped == flat


def test_bytes_that_lie_on_a_device_are_those_that_the_compiler_takes():
  config = tiny(**{'mesh.data': 2, 'mesh.fsdp': 2, 'mesh.tensor': 2})
  program = Program(config)
  held = leaves.held(program)
  taken = program.lower().compile().memory_analysis().argument_size_in_bytes
  assert sum(leaf.local for leaf in held) == pytest.approx(taken, rel=0.01)
  kinds = leaves.by_kind(held)
  assert (
    kinds['gradients'] == kinds['trained']
    and kinds['optimizer'] >= kinds['trained'] > kinds['frozen'] > 0
  )


def test_large_leaves_on_every_device_are_named():
  config = tiny(**{'mesh.data': 8, 'model.llm.vocab': 70_000})
  names = [leaf.path for leaf in leaves.replicated(leaves.held(Program(config)), 8)]
  assert (
    names
    and all('embed' in name or 'output' in name for name in names)
    and any(name == 'llm/output/kernel' for name in names)
  )
  assert (
    leaves.replicated(leaves.held(Program(tiny(**{'mesh.fsdp': 8, 'model.llm.vocab': 70_000}))), 8)
    == []
  )


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
  found = {
    one.kind: one for one in hlo.collectives(jax.jit(net).lower(*shapes).compile().as_text())
  }
  gather, total = found['all-gather'], found['all-reduce']
  assert (gather.trips, gather.count, gather.nbytes) == (5, 1, 64 * 64 * 4)
  assert (total.where, total.trips, total.count, total.nbytes) == ('once', 1, 1, 4)


def test_kinds_that_only_a_tpu_compiles_to():
  """Lines as libtpu 0.0.42.1 writes them: a gather that runs beside other work, and a scatter as a fusion."""
  text = """HloModule jit_step
%all-reduce-scatter.2.clone (input.1: bf16[5120,32]) -> bf16[1280,32] {
  %input.1 = bf16[5120,32]{1,0} parameter(0)
  %all-reduce.3 = bf16[5120,32]{1,0} all-reduce(%input.1), channel_id=1, to_apply=%add
  ROOT %dynamic-slice.4 = bf16[1280,32]{1,0} dynamic-slice(%all-reduce.3), dynamic_slice_sizes={1280,32}
}

ENTRY %main (p.1: bf16[1280,32]) -> bf16[1280,32] {
  %p.1 = bf16[1280,32]{1,0} parameter(0)
  %all-gather-start.1 = (bf16[1280,32]{1,0}, bf16[5120,32]{1,0}) all-gather-start(%p.1), channel_id=2, dimensions={0}
  %all-gather-done.1 = bf16[5120,32]{1,0} all-gather-done(%all-gather-start.1)
  ROOT %fusion.1 = bf16[1280,32]{1,0} fusion(%all-gather-done.1), kind=kCustom, calls=%all-reduce-scatter.2.clone
}
"""
  whole = 5120 * 32 * 2
  assert sorted((one.kind, one.count, one.nbytes) for one in hlo.collectives(text)) == [
    ('all-gather', 1, whole),
    ('reduce-scatter', 1, whole),
  ]


def test_replicated_is_not_said_of_one_device():
  assert leaves.replicated(leaves.held(Program(tiny(**{'model.llm.vocab': 70_000}))), 1) == []
  assert np.prod(Program(tiny()).mesh.devices.shape) == 1
