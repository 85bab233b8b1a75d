"""A mixture made of dense checkpoints: equal experts compute as the dense model does."""

import jax
import numpy as np
import pytest

from sphinx_jax import convert
from sphinx_jax.checkpoint import bundle, mixing, store, upcycled
from sphinx_jax.checkpoint.foreign import mixing as foreign_mixing, safetensors
from sphinx_jax.core import errors, trees
from sphinx_jax.generate import load
from sphinx_jax.mix import weights
from sphinx_jax.models import families
from tests import command
from tests.checkpoint.foreign.recorded import GOLDEN, LLAMA, TOKENIZER

W1 = 'llm/layers/feed_forward/w1/kernel'


def varied(folder, directory, factor):
  """A fine-tune of a checkpoint: all its parameters times a factor."""
  params = jax.tree.map(lambda leaf: leaf * factor, store.load_params(folder))
  with store.Store(directory) as saver:
    saver.save(1, params, None, bundle.load_bundle(folder).to_meta())
  return directory


@pytest.fixture(scope='module')
def dense(tmp_path_factory):
  folder = tmp_path_factory.mktemp('dense')
  assembly = convert.open_sources([str(GOLDEN / LLAMA)], tokenizer=str(TOKENIZER))
  convert.import_checkpoint(assembly, folder / 'one')
  return folder / 'one', varied(folder / 'one', folder / 'two', 1.5)


def read(directory):
  return trees.flatten(jax.tree.map(np.asarray, store.load_params(directory)))


def test_copies_of_one_feed_forward_layer_give_the_dense_logits(dense, tmp_path, capsys):
  flags = f'--inputs={dense[0]}', '--experts=4', f'--output={tmp_path / "moe"}'
  code, _, error = command.run(capsys, 'upcycle', *flags)
  assert code == 0, error
  tokens = np.random.default_rng(0).integers(3, 500, (2, 12))
  expected = load.load_model(dense[0]).logits(tokens)
  model = load.load_model(tmp_path / 'moe')
  assert model.config.llm.name == 'mixtral' and model.config.llm.experts == 4
  np.testing.assert_allclose(model.logits(tokens), expected, atol=2e-5)
  gate = read(tmp_path / 'moe')['llm/layers/feed_forward/gate/kernel']
  assert 0 < np.abs(gate).max() < 0.1


def test_fine_tunes_become_the_experts_and_share_the_rest(dense, tmp_path):
  upcycled.upcycle([*map(str, dense)], tmp_path / 'moe', experts=4, per_token=1)
  mixed, (one, two) = read(tmp_path / 'moe'), map(read, dense)
  for expert, parent in enumerate((one, two, one, two)):
    np.testing.assert_array_equal(mixed[W1][:, expert], parent[W1])
  for path in ('llm/embed', 'llm/layers/attention/wq/kernel', 'llm/norm/scale'):
    np.testing.assert_allclose(mixed[path], (one[path] + two[path]) / 2, rtol=1e-6)


def test_a_rule_mixes_a_single_expert_or_the_router(dense, tmp_path):
  places = [tmp_path / name for name in 'ab']
  for place, parent in zip(places, dense):
    upcycled.upcycle([str(parent)], place, experts=4, per_token=2, seed=len(place.name))
  rules = [
    ('llm/layers/feed_forward/w[123]/kernel/2', (1.0, 0.0)),
    ('.*/gate/kernel', (0.0, 1.0)),
    ('.*', (0.5, 0.5)),
  ]
  mixing.mix_checkpoints(places, rules, tmp_path / 'mixed')
  mixed, a, b = (read(place) for place in (tmp_path / 'mixed', *places))
  for expert in range(4):
    expected = a[W1] if expert == 2 else (a[W1] + b[W1]) / 2
    np.testing.assert_allclose(mixed[W1][:, expert], expected[:, expert], rtol=1e-6)
  gate = 'llm/layers/feed_forward/gate/kernel'
  np.testing.assert_array_equal(mixed[gate], b[gate])
  mixing.mix_checkpoints(places, rules, tmp_path / 'slerp', method='slerp')
  np.testing.assert_array_equal(read(tmp_path / 'slerp')[W1][:, 2], a[W1][:, 2])
  with pytest.raises(errors.SphinxError, match='a rule that matches no parameter'):
    wrong = [('.*/w1/kernel/4', (1.0, 0.0)), rules[-1]]
    mixing.mix_checkpoints(places, wrong, tmp_path / 'wrong')


@pytest.mark.parametrize('method', ['ties', 'dare_linear', 'model_stock'])
def test_every_layer_and_expert_of_a_model_is_mixed_alone(dense, tmp_path, method):
  """The streamed mix has the bits of that of whole trees with the stacks of the config."""
  places = [tmp_path / name for name in 'abc']
  for place, parent in zip(places, (*dense, dense[0])):
    upcycled.upcycle([str(parent)], place, experts=4, per_token=2, seed=len(place.name))
  rules = [('llm/layers/feed_forward/w[123]/kernel/2', (1.0, 0.0)), ('.*', (0.5, 0.5))]
  mixing.mix_checkpoints(places[:2], rules, tmp_path / 'mix', base=places[2], method=method)
  stacked = families.stacked(bundle.load_bundle(places[0]).config.model)
  assert stacked[W1] == 2 and stacked['llm/embed'] == 0
  parents = [store.load_params(place) for place in places]
  mixed = weights.mix(parents[:2], rules, base=parents[2], method=method, stacked=stacked)
  for path, value in read(tmp_path / 'mix').items():
    np.testing.assert_array_equal(value, trees.flatten(mixed)[path], err_msg=path)


def test_folders_of_transformers_take_rules_of_single_experts(dense, tmp_path):
  folder = GOLDEN.parent / 'models' / 'mixtral_hf'
  other = tmp_path / 'other'
  other.mkdir()
  for file in folder.iterdir():
    (other / file.name).write_bytes(file.read_bytes())
  doubled = {
    key: type(tensor)(tensor.shape, tensor.dtype, lambda tensor=tensor: tensor.read() * 2)
    for key, tensor in safetensors.open_safetensors(folder).items()
  }
  (other / 'model.safetensors').unlink()
  safetensors.write_safetensors(other, doubled)
  rules = [('.*/w1/kernel/3', (0.0, 1.0)), ('.*', (1.0, 0.0))]
  foreign_mixing.mix_folders([folder, other], rules, tmp_path / 'mixed')
  mixed, plain = (safetensors.open_safetensors(place) for place in (tmp_path / 'mixed', folder))
  for key, tensor in plain.items():
    factor = 2 if '.experts.3.w1.' in key else 1
    np.testing.assert_array_equal(mixed[key].read(), tensor.read() * factor, err_msg=key)


@pytest.mark.parametrize(
  'experts, per_token, words',
  [(3, 2, '3 experts of 2 inputs'), (2, 3, '2 experts of 2 inputs, 3 of them for a token')],
)
def test_numbers_that_do_not_fit_are_refused(dense, tmp_path, experts, per_token, words):
  with pytest.raises(errors.SphinxError, match=words):
    upcycled.upcycle([*map(str, dense)], tmp_path / 'moe', experts, per_token)
  assert not (tmp_path / 'moe').exists()


def test_a_mixture_is_not_upcycled_again(dense, tmp_path):
  upcycled.upcycle([str(dense[0])], tmp_path / 'moe', experts=2, per_token=1)
  with pytest.raises(errors.SphinxError, match="got a language model 'mixtral'"):
    upcycled.upcycle([str(tmp_path / 'moe')], tmp_path / 'again', experts=2, per_token=1)
  assert families.active_share(bundle.load_bundle(tmp_path / 'moe').config.model) == 0.5
