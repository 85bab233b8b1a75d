import json

import ml_collections
import numpy as np
import pytest
from PIL import Image

from sphinx_jax import peek, run
from sphinx_jax.configs import stage2
from sphinx_jax.core import config as config_lib, errors
from sphinx_jax.models import sphinx
from sphinx_jax.report import packed_rows
from tests import paper_data, release
from tests.generate import small
from tests.report import texts

SEEN = np.full((16, 16, 3), (10, 200, 30), np.uint8)


@pytest.fixture
def config(tmp_path):
  """A run on one's own two examples."""
  Image.fromarray(SEEN).save(tmp_path / 'a.png')
  dialogs = [('What is the color?', 'red circle'), ('one two three', 'blue square')]
  lines = [
    {'conversations': [{'from': 'human', 'value': q}, {'from': 'gpt', 'value': a}]}
    for q, a in dialogs
  ]
  lines[0]['image'] = 'a.png'
  (tmp_path / 'my.jsonl').write_text('\n'.join(json.dumps(line) for line in lines))
  (tmp_path / 'tokenizer.model').write_bytes(small.tokenizer().model_bytes)
  return ml_collections.ConfigDict(
    dict(
      model=small.config().to_dict(),
      seed=0,
      tokenizer=str(tmp_path / 'tokenizer.model'),
      dialog=dict(system=''),
      data_dir='',
      mixture=dict(mine=dict(source='jsonl', path=str(tmp_path / 'my.jsonl'), weight=1.0)),
      validation=dict(),
      batch=dict(size=1, seq_len=96, images=2, window=4),
      loss_weighting='token',
      max_skipped=0.5,
      image=dict(alpha='drop'),
      sampling=dict(by='examples', temperature=1.0, stages=()),
      eval_batches=1,
    )
  )


@pytest.fixture(scope='module')
def paper_root(tmp_path_factory):
  """The folder that a pod run is started in."""
  root = tmp_path_factory.mktemp('paper')
  paper_data.write(root / 'data')
  return root


def test_text_mask_and_pixels_are_what_the_model_gets(config):
  table, shown = peek.peek(config, 1)
  assert 'mine' in table
  with_image = next((example, views) for example, views in shown if example.slots)
  without = next(example for example, _ in shown if not example.slots)
  assert with_image[0].runs == [
    ('<image>### Human: What is the color?\n### Assistant:', False),
    (' red circle\n###', True),
  ]
  assert without.runs == [
    ('### Human: one two three\n### Assistant:', False),
    (' blue square\n###', True),
  ]
  assert without.visual == 0 and without.task == 'mine'
  ((caption, views),) = with_image[1]
  assert caption == 'convnext: 1 x 16 pixels' and np.array_equal(views, SEEN[None])


def test_every_view_of_every_size_is_shown():
  model = ml_collections.ConfigDict(
    dict(grid=2, encoders=dict(clip=dict(view=8), dinov2=dict(view=8), convnext=dict(view=16)))
  )
  sheets = sphinx.Sphinx.views(model, SEEN)
  assert [caption for caption, _ in sheets] == [
    'clip, dinov2: 5 x 8 pixels',
    'convnext: 5 x 16 pixels',
  ]
  assert np.array_equal(sheets[0][1][1:], np.broadcast_to(SEEN[:8, :8], (4, 8, 8, 3)))


def test_trained_text_is_marked_on_a_terminal_and_off_it(config):
  example = peek.peek(config, 1)[1][0][0]
  plain, colored = (packed_rows.to_text(example, color=color) for color in (False, True))
  assert '⟦ ' in plain and '\x1b' not in plain
  assert '\x1b[1;32m ' in colored and '⟦' not in colored


def test_the_command_prints_and_writes_an_image(config, tmp_path, capsys):
  peek.show(config, 1, tmp_path / 'peek.png', color=False)
  printed = capsys.readouterr().out
  assert 'task mine' in printed and 'epochs' in printed
  pixels = np.asarray(Image.open(tmp_path / 'peek.png').convert('RGB'))
  assert (pixels == SEEN[0, 0]).all(-1).sum() > 100 * 100
  with pytest.raises(errors.SphinxError, match='--output'):
    peek.show(config, 1, '/nowhere/peek.png', color=False)


def test_an_unknown_stage_of_a_recipe_is_refused():
  recipe = ml_collections.ConfigDict(
    dict(steps=('data', 'real'), data=dict(kind='data'), real=dict(kind='train'))
  )
  with pytest.raises(errors.SphinxError, match="'reel'.*did you mean 'real'"):
    run.training_run(recipe, 'reel', '')


def test_one_entry_of_a_mixture_is_shown_without_the_data_of_the_others(config, tmp_path):
  plain = config.to_dict() | {'tokenizer': '', 'init_from': 'nowhere'}
  plain['mixture']['other'] = dict(source='refcoco', root='not/here', weight=1.0)
  plain['sampling'] |= dict(by='learned', learned={})  # Begins with the weights of the mixture.
  alone = peek.narrowed(
    ml_collections.ConfigDict(plain), ['mine'], str(tmp_path / 'tokenizer.model')
  )
  assert list(alone.mixture) == ['mine'] and peek.peek(alone, 1)[1]
  assert len(peek.narrowed(ml_collections.ConfigDict(plain), None, None).mixture) == 2
  with pytest.raises(
    errors.SphinxError, match="'mime', expected one of mine, other; did you mean 'mine'"
  ):
    peek.narrowed(ml_collections.ConfigDict(plain), ['mime'], None)


def test_a_stage_of_a_finished_recipe_is_shown(finished_recipe, tmp_path, capsys):
  config = config_lib.from_json((finished_recipe / 'config.json').read_text())
  stage = run.training_run(config, 'stage2', finished_recipe)
  peek.show(peek.narrowed(stage, None, None), 1, tmp_path / 'peek.png', color=False)
  assert 'row 0, positions' in capsys.readouterr().out
  assert Image.open(tmp_path / 'peek.png').width > 100


@pytest.mark.parametrize('name', stage2.MIXTURE)
def test_every_entry_of_stage_2_can_be_shown(name, paper_root, tmp_path, monkeypatch):
  monkeypatch.chdir(paper_root)
  entry = peek.narrowed(stage2.get_config('7b,224'), [name], str(release.TOKENIZER))
  with entry.unlocked():
    entry.model.image_size = 16
    entry.model.llm.vocab = 512
    entry.batch.update(size=1, window=8)
  _, shown = peek.peek(entry, 1)
  assert shown and {example.task for example, _ in shown} == {name}
  assert all(any(trained for _, trained in example.runs) for example, _ in shown)
  page = packed_rows.to_image(shown, 'table')
  assert page.width > 100


def test_any_text_is_shown_as_text_and_as_an_image():
  font = packed_rows.Example(0, 'x', 0, 9, (), [], 0, 1.0)
  for text in texts.HOSTILE.values():
    example = font._replace(task=text, runs=[(text, False), (text, True)])
    shown = packed_rows.to_text(example, color=False)
    assert all(character >= ' ' or character == '\n' for character in shown)
    shown.encode()
    image = packed_rows.to_image([(example, [(text[:50], SEEN[None])])], text[:50])
    assert image.width > 760 and image.height < 20_000


def test_a_text_of_windows_line_breaks_is_shown(config, tmp_path):
  file = tmp_path / 'my.jsonl'
  file.write_text(file.read_text().replace('blue square', 'blue\\r\\nsquare\\u0007'))
  peek.show(config, 2, tmp_path / 'peek.png', color=True)
  assert Image.open(tmp_path / 'peek.png').width > 760
