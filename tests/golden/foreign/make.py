"""Makes the files of this folder: tiny random models of other libraries, saved as their users do.

Run it by hand where the libraries are installed: `pip install torch transformers timm
open_clip_torch`, then `python make.py`. versions.json names the versions that made the recorded
files; transformers 4.57.6 writes and reads the same tensor names.

No library publishes Meta's LLaMA, DINOv2's own code or OpenAI's archive, so these three files are
made from the weights of another one:

- llama_meta: from HF's LLaMA. HF's rotary embedding pairs channel i with i + C/2, Meta's pairs
  neighbors.
- dinov2_original.pth: from HF's DINOv2. timm reads that form and must compute the same features.
- clip_openai.pt: a TorchScript archive of open_clip's model, whose parameter names are OpenAI's, in
  half precision like OpenAI's, with the three numbers that describe it. HF's CLIP with the same
  weights must compute the same features.

Weights are representable in half precision (one LLaMA: in bfloat16), so that files of several
dtypes hold the same numbers.
"""

import copy
import io
import json
import pathlib
import shutil
import zipfile

import numpy as np
import open_clip
import safetensors.torch
import timm
import torch
import transformers

HERE = pathlib.Path(__file__).parent
CLIP = dict(mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711))
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
TEXT = dict(vocab_size=20, width=16, heads=2, layers=1, context_length=7)
CONVNEXT = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32), norm_eps=1e-5)


@torch.no_grad()
def randomize(model, seed, dtype=torch.float16):
  """Draws every parameter, biases and norms too, so that none can be mistaken for another."""
  generator = torch.Generator().manual_seed(seed)
  for name, value in model.named_parameters():
    noise = torch.randn(value.shape, generator=generator)
    if value.ndim < 2:
      around = 1.0 if name.endswith(('weight', 'gamma', 'lambda1')) else 0.0
      noise = around + 0.1 * noise
    elif 'embed' not in name.lower() and 'query_tokens' not in name:
      noise = noise * value[0].numel() ** -0.5
    value.copy_(noise.to(dtype))
  return model.eval()


def normalize(image, mean, std):
  """uint8[Y,X,3] -> float32[1,3,Y,X]."""
  pixels = (torch.from_numpy(image.astype(np.float32)) / 255 - torch.tensor(mean)) / torch.tensor(
    std
  )
  return pixels.permute(2, 0, 1)[None]


@torch.no_grad()
def output_of(module, call):
  """What `module` gives while `call` runs."""
  seen = []
  hook = module.register_forward_hook(lambda _, __, out: seen.append(out))
  call()
  hook.remove()
  return seen[0]


def same(a, b):
  torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def half(weights):
  return {key: value.half() for key, value in weights.items()}


def llama(outputs):
  config = dict(hidden_size=32, intermediate_size=88, num_hidden_layers=2, num_attention_heads=4)
  tokens = torch.randint(0, 64, (1, 12), generator=torch.Generator().manual_seed(0))
  outputs['llama_tokens'] = tokens.numpy().astype(np.int32)

  scaled = transformers.LlamaForCausalLM(
    transformers.LlamaConfig(
      **config,
      vocab_size=512,
      num_key_value_heads=2,
      rms_norm_eps=1e-5,
      rope_parameters=dict(rope_type='linear', factor=2.0, rope_theta=5000.0),
    )
  )
  randomize(scaled, 1)
  outputs['llama_scaled_logits'] = scaled(tokens).logits.detach().numpy()
  meta(scaled.state_dict(), HERE / 'llama_meta')
  scaled.half().save_pretrained(HERE / 'llama_hf')

  plain = randomize(
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config, vocab_size=64)),
    2,
    torch.bfloat16,
  )
  outputs['llama_logits'] = plain(tokens).logits.detach().numpy()
  plain.bfloat16().save_pretrained(HERE / 'llama_hf_sharded', max_shard_size='20KB')


def meta(weights, folder, heads=4, kv_heads=2, layers=2):
  """Writes HF's LLaMA weights as Meta's two tensor-parallel shards."""

  def neighbors(weight, count):  # Channels (0, C/2, 1, C/2 + 1, ...) of every head.
    return weight.unflatten(0, (count, 2, -1)).transpose(1, 2).flatten(0, 2)

  whole = {
    'tok_embeddings.weight': (weights['model.embed_tokens.weight'], 1),
    'output.weight': (weights['lm_head.weight'], 0),
    'norm.weight': (weights['model.norm.weight'], None),
    'rope.freqs': (5000.0 ** -(torch.arange(0, 8, 2) / 8), None),
  }
  for i in range(layers):
    get = lambda name, i=i: weights[f'model.layers.{i}.{name}.weight']
    whole |= {
      f'layers.{i}.{key}.weight': value
      for key, value in {
        'attention.wq': (neighbors(get('self_attn.q_proj'), heads), 0),
        'attention.wk': (neighbors(get('self_attn.k_proj'), kv_heads), 0),
        'attention.wv': (get('self_attn.v_proj'), 0),
        'attention.wo': (get('self_attn.o_proj'), 1),
        'feed_forward.w1': (get('mlp.gate_proj'), 0),
        'feed_forward.w2': (get('mlp.down_proj'), 1),
        'feed_forward.w3': (get('mlp.up_proj'), 0),
        'attention_norm': (get('input_layernorm'), None),
        'ffn_norm': (get('post_attention_layernorm'), None),
      }.items()
    }
  folder.mkdir()
  for rank in range(2):
    torch.save(
      {
        key: (value if axis is None else value.chunk(2, axis)[rank]).half().contiguous().clone()
        for key, (value, axis) in whole.items()
      },
      folder / f'consolidated.{rank:02d}.pth',
    )
  (folder / 'params.json').write_text(
    json.dumps(
      dict(
        dim=32,
        multiple_of=8,
        n_heads=heads,
        n_kv_heads=kv_heads,
        n_layers=layers,
        norm_eps=1e-5,
        vocab_size=-1,
      )
    )
  )


def clip(image, outputs):
  x = normalize(image, **CLIP)
  vision = dict(image_size=224, layers=2, width=32, head_width=8, patch_size=14)
  models = {
    quick: open_clip.CLIP(8, vision, open_clip.CLIPTextCfg(**TEXT), quick_gelu=quick).eval()
    for quick in (False, True)
  }
  weights = randomize(models[False], 3).state_dict()
  models[True].load_state_dict(weights)
  for name, quick in (('clip_gelu', False), ('clip_quick_gelu', True)):
    visual = models[quick].visual
    outputs[name] = output_of(visual.ln_post, lambda visual=visual: visual(x))[0].numpy()
  torch.save(half(weights), HERE / 'clip_open_clip.bin')

  other = transformers.CLIPModel(
    transformers.CLIPConfig(
      text_config=dict(
        hidden_size=16,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        vocab_size=20,
        max_position_embeddings=7,
        bos_token_id=1,
        eos_token_id=2,
      ),
      vision_config=dict(
        hidden_size=32,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=14,
      ),
      projection_dim=8,
    )
  ).eval()
  other.load_state_dict(huggingface_clip(weights))
  seen = output_of(other.vision_model.encoder, lambda: other.vision_model(x)).last_hidden_state
  same(
    other.vision_model.post_layernorm(seen)[0].detach(),
    torch.from_numpy(outputs['clip_quick_gelu']),
  )
  other.save_pretrained(HERE / 'clip_hf')

  # Traced in float32; the archive's own dtypes are put in afterwards.
  for name, value in (('input_resolution', 224), ('context_length', 7), ('vocab_size', 20)):
    vars(models[True]).pop(name, None)
    models[True].register_buffer(name, torch.tensor(value))
  traced = torch.jit.trace(
    models[True], (x, torch.zeros(1, 7, dtype=torch.int64)), check_trace=False
  )
  typed = copy.deepcopy(models[True])
  open_clip.model.convert_weights_to_fp16(typed)
  for (name, value), (same_name, other) in zip(
    traced.named_parameters(), typed.named_parameters(), strict=True
  ):
    assert name == same_name
    value.data = other.data
  with_debug = io.BytesIO()
  torch.jit.save(traced, with_debug)
  with zipfile.ZipFile(with_debug) as old, zipfile.ZipFile(HERE / 'clip_openai.pt', 'w') as new:
    for record in old.infolist():
      if not record.filename.endswith('.debug_pkl'):  # Paths of the machine that made it.
        new.writestr(record, old.read(record))
  torch.jit.load(HERE / 'clip_openai.pt')


def huggingface_clip(weights):
  """open_clip's CLIP in HF's names."""

  def tower(theirs, ours, layers):
    found = {}
    for i in range(layers):
      block, to = f'{theirs}transformer.resblocks.{i}.', f'{ours}encoder.layers.{i}.'
      for kind in ('weight', 'bias'):
        for name, part in zip('qkv', weights[f'{block}attn.in_proj_{kind}'].chunk(3)):
          found[f'{to}self_attn.{name}_proj.{kind}'] = part
        for a, b in (
          ('attn.out_proj', 'self_attn.out_proj'),
          ('ln_1', 'layer_norm1'),
          ('ln_2', 'layer_norm2'),
          ('mlp.c_fc', 'mlp.fc1'),
          ('mlp.c_proj', 'mlp.fc2'),
        ):
          found[f'{to}{b}.{kind}'] = weights[f'{block}{a}.{kind}']
    return found

  found = tower('visual.', 'vision_model.', 2) | tower('', 'text_model.', 1)
  for kind in ('weight', 'bias'):
    for a, b in (
      ('visual.ln_pre', 'vision_model.pre_layrnorm'),
      ('visual.ln_post', 'vision_model.post_layernorm'),
      ('ln_final', 'text_model.final_layer_norm'),
    ):
      found[f'{b}.{kind}'] = weights[f'{a}.{kind}']
  vision, text = 'vision_model.embeddings.', 'text_model.embeddings.'
  return found | {
    vision + 'class_embedding': weights['visual.class_embedding'],
    vision + 'patch_embedding.weight': weights['visual.conv1.weight'],
    vision + 'position_embedding.weight': weights['visual.positional_embedding'],
    'logit_scale': weights['logit_scale'],
    text + 'token_embedding.weight': weights['token_embedding.weight'],
    text + 'position_embedding.weight': weights['positional_embedding'],
    'visual_projection.weight': weights['visual.proj'].T,
    'text_projection.weight': weights['text_projection'].T,
  }


@timm.models.register_model
def convnext_golden(pretrained=False, **options):
  return timm.models.convnext._create_convnext(
    'convnext_golden', pretrained=pretrained, **CONVNEXT, **options
  )


def convnext(image, outputs):
  near = np.arange(256) * 224 // 256  # SPHINX shows it the view at 256 pixels, nearest.
  model = randomize(timm.create_model('convnext_golden', num_classes=5), 4)
  timm.models.save_for_hf(
    copy.deepcopy(model).half(), HERE / 'convnext_timm', safe_serialization=True
  )
  model.head.global_pool = model.head.flatten = model.head.fc = torch.nn.Identity()
  with torch.no_grad():
    outputs['convnext'] = model(normalize(image[near][:, near], **CLIP))[0].permute(1, 2, 0).numpy()

  wrapped = open_clip.CLIP(
    8,
    dict(timm_model_name='convnext_golden', timm_pool='', timm_proj='linear', image_size=256),
    open_clip.CLIPTextCfg(**TEXT),
  )
  randomize(wrapped, 5)
  wrapped.visual.trunk.load_state_dict(model.state_dict(), strict=False)  # All but the classifier.
  torch.save(half(wrapped.state_dict()), HERE / 'convnext_open_clip.bin')


def dinov2(image, outputs):
  x = normalize(image, **IMAGENET)
  model = transformers.Dinov2Model(
    transformers.Dinov2Config(
      hidden_size=48,
      num_hidden_layers=2,
      num_attention_heads=3,
      use_swiglu_ffn=True,
      image_size=224,
      patch_size=14,
    )
  )
  with torch.no_grad():
    outputs['dinov2'] = randomize(model, 6)(x).last_hidden_state[0].numpy()
  model.half().save_pretrained(HERE / 'dinov2_hf')
  weights = original_dinov2(safetensors.torch.load_file(HERE / 'dinov2_hf' / 'model.safetensors'))
  torch.save(weights, HERE / 'dinov2_original.pth')

  other = timm.create_model(
    'vit_giant_patch14_dinov2', embed_dim=48, depth=2, num_heads=3, img_size=224
  ).eval()
  weights = {key: value.float() for key, value in weights.items()}
  other.load_state_dict(timm.models.vision_transformer.checkpoint_filter_fn(weights, other))
  same(other.forward_features(x)[0].detach(), torch.from_numpy(outputs['dinov2']))


def original_dinov2(weights):
  """HF's DINOv2 in the names of its own repository."""
  found = {
    'cls_token': weights['embeddings.cls_token'],
    'pos_embed': weights['embeddings.position_embeddings'],
    'mask_token': weights['embeddings.mask_token'],
  }
  for kind in ('weight', 'bias'):
    found[f'patch_embed.proj.{kind}'] = weights[f'embeddings.patch_embeddings.projection.{kind}']
    for i in range(2):
      get = lambda name, i=i: weights[f'encoder.layer.{i}.{name}']
      found |= {
        f'blocks.{i}.{key}.{kind}': get(f'{name}.{kind}')
        for key, name in (
          ('norm1', 'norm1'),
          ('norm2', 'norm2'),
          ('attn.proj', 'attention.output.dense'),
          ('mlp.w12', 'mlp.weights_in'),
          ('mlp.w3', 'mlp.weights_out'),
        )
      }
      found[f'blocks.{i}.attn.qkv.{kind}'] = torch.cat(
        [get(f'attention.attention.{name}.{kind}') for name in ('query', 'key', 'value')]
      )
      found |= {f'blocks.{i}.ls{n}.gamma': get(f'layer_scale{n}.lambda1') for n in (1, 2)}
    found[f'norm.{kind}'] = weights[f'layernorm.{kind}']
  return found


def blip2(image, outputs):
  model = transformers.Blip2ForConditionalGeneration(
    transformers.Blip2Config(
      vision_config=dict(
        hidden_size=32,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=224,
        patch_size=14,
      ),
      qformer_config=dict(
        vocab_size=20,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=96,
        encoder_hidden_size=32,
        max_position_embeddings=16,
      ),
      text_config=dict(
        model_type='opt',
        vocab_size=20,
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=16,
        num_attention_heads=2,
        max_position_embeddings=16,
        word_embed_proj_dim=16,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
      ),
      num_query_tokens=32,
    )
  )
  randomize(model, 7)
  x = normalize(image, **CLIP)
  with torch.no_grad():
    seen = model.vision_model(x).last_hidden_state
    read = model.qformer(
      query_embeds=model.query_tokens, encoder_hidden_states=seen
    ).last_hidden_state
    outputs['blip2_queries'] = read[0].numpy()
  model.half().save_pretrained(HERE / 'blip2_hf')


def main():
  for old in HERE.iterdir():
    if old.is_dir():
      shutil.rmtree(old)
  cells = np.random.default_rng(0).integers(0, 256, (28, 28, 3), np.uint8)
  outputs = {'picture': cells.repeat(8, 0).repeat(8, 1)}
  llama(outputs)
  for part in (clip, convnext, dinov2, blip2):
    part(outputs['picture'], outputs)
  for file in HERE.glob('*/generation_config.json'):
    file.unlink()
  np.savez_compressed(HERE / 'outputs.npz', **outputs)
  (HERE / 'versions.json').write_text(
    json.dumps(
      {
        library.__name__: library.__version__
        for library in (torch, transformers, timm, open_clip, np)
      },
      indent=2,
    )
    + '\n'
  )


if __name__ == '__main__':
  main()
