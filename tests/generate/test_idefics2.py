"""A released Idefics2 folder, loaded as it is, beside numbers recorded from HF transformers."""

import functools
import json
import shutil

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file

import sphinx_jax
from sphinx_jax import chat, convert
from sphinx_jax.checkpoint.foreign import safetensors
from sphinx_jax.core import errors
from sphinx_jax.data import dialog, images as images_lib
from tests.generate import small
from tests.models import idefics2_golden as golden

IMAGES = {
  'text': [[], []],
  'one_image': [['wide3to1']],
  'two_images': [['gray', 'large']],
  'batch': [['square', 'tall1to3'], ['rgba'], ['tiny', 'wide3to1', 'gray']],
  'batch_zero': [['square'], [], ['tiny', 'gray']],
  'split': [['large']],
}


END = '<end_of_utterance>'


@functools.cache
def image(name):
  return np.asarray(images_lib.to_rgb(Image.open(golden.FOLDER / 'images' / f'{name}.png')))


def images(case):
  return [[image(name) for name in row] for row in IMAGES[case]]


@functools.cache
def model(split=False):
  loaded = sphinx_jax.load(golden.FOLDER / 'model')
  if split:
    loaded.slot_rule = type(loaded.slot_rule)(42, 98, split=True)
  return loaded


def padded(rows):
  longest = max(map(len, rows))
  return np.array([[*row, *[0] * (longest - len(row))] for row in rows])


@pytest.mark.parametrize('case', golden.some('text', 'batch', 'split'))
def test_logits_of_texts_and_images_are_the_recorded_ones(case):
  subject, arrays = model(case == 'split'), golden.recorded(case)
  prompts = golden.FACTS['prompts_of_cases'][case]
  ids = [subject.encode(text, of_row) for text, of_row in zip(prompts, images(case))]
  assert ids == [row.tolist() for row in golden.unpadded(arrays['input_ids'], arrays)]
  logits = subject.logits(padded(ids), images(case))
  for got, want in zip(
    golden.text_positions(logits, arrays), golden.unpadded(arrays['logits'], arrays)
  ):
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize('case', golden.some('text', 'batch', 'split'))
def test_greedy_continuations_are_the_recorded_ones(case):
  """Until the first stop: EOS or the end of the turn."""
  subject = model(case == 'split')
  recorded = np.load(golden.FOLDER / 'forward' / f'{case}_greedy.npz')
  prompts = golden.FACTS['prompts_of_cases'].get(f'{case}_greedy')
  if prompts:
    texts = subject.generate(prompts, images(case), max_new_tokens=12, parse_special=True)
  else:
    texts = subject.complete(golden.unpadded(recorded['input_ids'], recorded), max_new_tokens=12)
  ends = {subject.tokenizer.eos, subject.tokenizer.specials['<end_of_utterance>']}
  for text, want in zip(texts, recorded['new_tokens'].tolist()):
    end = next((i for i, token in enumerate(want) if token in ends), len(want))
    assert text == subject.tokenizer.decode(want[:end]).strip()


CHATS = json.loads((golden.FOLDER / 'chats.json').read_text())


@pytest.mark.parametrize(
  'chat', [c for c in CHATS if c.get('messages')], ids=lambda chat: chat['name']
)
def test_messages_become_the_text_and_the_ids_of_transformers(chat):
  messages, pictures = chat['messages'], [image('gray')] * chat['number_of_images']
  if chat['name'] == 'string_content':  # Renders as nothing there.
    assert model().prompt(messages) == f'User: {messages[0]["content"]}{END}\nAssistant:'
    return
  assert model().prompt(messages) == chat['prompt']
  assert model().encode(messages, pictures) == chat['ids_v4_whole']
  assert model(split=True).encode(messages, pictures) == chat['ids_v4_split']
  as_text = model().encode(messages, pictures, parse_special=False)
  assert (as_text == chat['ids_v4_whole']) == (chat['name'] != 'special_text')


def user(*content):
  return {'role': 'user', 'content': [*content]}


PICTURE, QUESTION = {'type': 'image'}, {'type': 'text', 'text': 'What?'}


def test_labels_stay_at_the_answer_behind_image_tokens():
  subject = model()
  encoded = subject.encode_dialog([('<image>What is this?', 'a cat')], 1)
  assert len(encoded.ids) == len(encoded.weights)
  labels = [token for token, weight in zip(encoded.ids, encoded.weights) if weight]
  assert subject.tokenizer.decode(labels).strip().startswith('a cat')
  assert encoded.ids.count(subject.config.image_token) == subject.visual_tokens


@pytest.mark.parametrize(
  'messages, pictures, words',
  [
    ([user(PICTURE, QUESTION)], 2, '2 images and 1 <image> marks'),
    ([user(PICTURE, QUESTION)], 0, '0 images and 1 <image> marks'),
    ([user(QUESTION)], 1, '1 images and 0 <image> marks'),
    ([user(QUESTION), user(QUESTION)], 0, "the roles user, user, expected 'user' and 'assistant'"),
    ([{'role': 'tool', 'content': 'x'}], 0, "messages: 'tool', not one of"),
    ([{'role': 'user'}], 0, 'needs "from" and "value", or "role" and "content"'),
  ],
)
def test_messages_that_cannot_be_asked_are_refused(messages, pictures, words):
  with pytest.raises(errors.SphinxError, match=words):
    model().encode(messages, [image('gray')] * pictures)


def test_messages_become_the_text_of_any_template():
  system = {'role': 'system', 'content': 'Be brief.'}
  asked = [system, user(QUESTION, PICTURE), {'role': 'assistant', 'content': 'A'}]
  subject, text = small.model(), 'Be brief.\n\n### Human: What?<image>\n### Assistant: A'
  assert subject.prompt(asked) == text
  blank = np.zeros((4, 4, 3), np.uint8)
  assert subject.encode(asked, blank) == [
    *subject.encode(text.split('<image>')[0]),
    *subject.encode(text.split('<image>')[1])[1:],
  ]


def test_a_base_model_has_no_prompt_of_messages(monkeypatch):
  monkeypatch.setattr(model(), '_template', dialog.Template(style='idefics2_base'))
  with pytest.raises(errors.SphinxError, match='messages for a base model, .*continues'):
    model().prompt([user(QUESTION)])


def test_a_chat_is_its_rendered_prompt():
  question = 'What differs between <image> and <image>?'
  pair = [image('gray'), image('large')]
  (text,) = model().generate(
    [f'User: {question}<end_of_utterance>\nAssistant:'],
    [pair],
    max_new_tokens=4,
    parse_special=True,
  )
  assert model().chat([(question, None)], images=pair, max_new_tokens=4) == text


@pytest.mark.parametrize(
  'call, words',
  [
    (lambda m: m.chat([('a <image>', None)], images=[]), '0 images and 1 <image> marks'),
    (lambda m: m.chat([('<image>', None)], images=[image('gray')] * 2), '2 images and 1 <image>'),
    (lambda m: m.encode('two <image><image>', image('gray')), '1 images and 2 <image> marks'),
    (
      lambda m: m.logits(np.array([[1, golden.IMAGE]]), [image('gray')]),
      r'1 images \(1 slots of 4 visual tokens\) and 1 image tokens',
    ),
  ],
)
def test_marks_that_disagree_with_the_images_are_refused(call, words):
  with pytest.raises(errors.SphinxError, match=words):
    call(model())


def test_a_conversion_gives_the_same_numbers(tmp_path):
  """Without tokenizer.model, the tokenizer is that of tokenizer.json."""
  case = 'two_images'
  ids = padded([model().encode(golden.FACTS['prompts_of_cases'][case][0], images(case)[0])])
  want = model().logits(ids, images(case))
  for name in ('pieces', 'json'):
    shutil.copytree(golden.FOLDER / 'model', tmp_path / name)
    if name == 'json':
      (tmp_path / name / 'tokenizer.model').unlink()
    convert.import_checkpoint(
      convert.open_sources([tmp_path / name]), str(tmp_path / f'{name}_out')
    )
    converted = sphinx_jax.load(tmp_path / f'{name}_out')
    np.testing.assert_array_equal(converted.logits(ids, images(case)), want)
    text = 'User:<image>What?<end_of_utterance>'
    assert converted.encode(text, image('gray')) == model().encode(text, image('gray'))
    assert converted.template == model().template


@pytest.mark.parametrize('shard_bytes', [1e9, 1e5])
def test_an_export_has_the_same_bits_and_files(shard_bytes, tmp_path, monkeypatch):
  write = functools.partial(safetensors.write_safetensors, shard_bytes=shard_bytes)
  monkeypatch.setattr(safetensors, 'write_safetensors', write)
  source = golden.FOLDER / 'model'
  convert.import_checkpoint(convert.open_sources([source]), str(tmp_path / 'ours'))
  convert.export_checkpoint(str(tmp_path / 'ours'), str(tmp_path / 'back'), 'hf')
  shards = sorted((tmp_path / 'back').glob('*.safetensors'))
  assert (len(shards) > 1) == (shard_bytes < 1e6)
  written = {}
  for shard in shards:
    written |= load_file(shard)
  assert written.keys() == golden.tensors().keys()
  for name, tensor in golden.tensors().items():
    np.testing.assert_array_equal(written[name], tensor)
  for name in ('config.json', 'preprocessor_config.json', 'processor_config.json'):
    written, read = ((folder / name).read_text() for folder in (tmp_path / 'back', source))
    assert json.loads(written) == json.loads(read)
  for name in ('tokenizer.model', 'tokenizer.json', 'chat_template.json', 'generation_config.json'):
    assert (tmp_path / 'back' / name).read_bytes() == (source / name).read_bytes()


def test_the_chat_command_takes_several_images(tmp_path, capsys):
  files = [golden.FOLDER / 'images' / f'{name}.png' for name in ('gray', 'large')]
  question = 'What differs between <image> and <image>?'
  chat.chat(golden.FOLDER / 'model', files, question, tmp_path / 'answer.png', max_new_tokens=4)
  pair = [image('gray'), image('large')]
  assert capsys.readouterr().out == (
    model().chat([(question, None)], images=pair, max_new_tokens=4) + '\n'
  )
  assert not (tmp_path / 'answer.png').exists()


def test_logits_with_an_adapter_are_the_recorded_ones(tmp_path):
  case, adapter = 'one_image', golden.FOLDER / 'adapter'
  adapted = sphinx_jax.load(golden.FOLDER / 'model', adapter=adapter)
  ids = [adapted.encode(golden.FACTS['prompts_of_cases'][case][0], images(case)[0])]
  logits, want = adapted.logits(ids, images(case)), np.load(golden.FOLDER / 'forward/adapter.npz')
  np.testing.assert_allclose(logits[0], want['logits'][0], atol=1e-4, rtol=0)
  for name, source in (
    ('merged', f'{golden.FOLDER}/model+{adapter}'),
    ('base', golden.FOLDER / 'model'),
  ):
    convert.import_checkpoint(convert.open_sources([str(source)]), tmp_path / name)
  converted = sphinx_jax.load(tmp_path / 'merged').logits(ids, images(case))
  np.testing.assert_array_equal(converted, logits)
  unmerged = sphinx_jax.load(tmp_path / 'base', adapter=adapter)
  assert 'lora_a' in unmerged.params['perceiver']['layers']['wq']
  np.testing.assert_allclose(
    unmerged.logits(ids, images(case))[0], want['logits'][0], atol=1e-4, rtol=0
  )


@pytest.mark.parametrize(
  'contents, words',
  [
    (b'\xff\xfe', 'damaged or incomplete'),
    (b'version https://git-lfs.github.com/spec/v1', 'git-lfs'),
  ],
)
def test_a_damaged_file_beside_the_weights_is_named(contents, words, tmp_path):
  shutil.copytree(golden.FOLDER / 'model', tmp_path / 'model')
  (tmp_path / 'model' / 'chat_template.json').chmod(0o644)
  (tmp_path / 'model' / 'chat_template.json').write_bytes(contents)
  with pytest.raises(errors.SphinxError, match=f'chat_template.json.*{words}'):
    sphinx_jax.load(tmp_path / 'model')
