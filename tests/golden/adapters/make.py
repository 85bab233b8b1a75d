"""Records adapters of PEFT and the weights that PEFT merges: see README.md beside this file."""

import pathlib

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import Idefics2ForConditionalGeneration, LlamaForCausalLM

HERE = pathlib.Path(__file__).parent
LLAMA = LlamaForCausalLM, HERE.parent / 'foreign' / 'llama_hf'
IDEFICS2 = Idefics2ForConditionalGeneration, HERE.parent / 'idefics2' / 'model'
CASES = {
  'lora': dict(r=3, lora_alpha=6, target_modules=['q_proj', 'down_proj']),
  'rslora': dict(
    r=4,
    lora_alpha=8,
    use_rslora=True,
    target_modules=r'.*layers\.\d+\.(self_attn|mlp)\.(q_proj|k_proj|up_proj)',
    rank_pattern={'k_proj': 2, r'layers\.0\.mlp\.up_proj': 1},
    alpha_pattern={r'model.layers.1.self_attn.q_proj': 5},
  ),
  'dora': dict(r=2, lora_alpha=4, use_dora=True, target_modules=['v_proj', 'gate_proj']),
  'saved': dict(
    r=2,
    lora_alpha=2,
    target_modules=['o_proj', 'embed_tokens'],
    modules_to_save=['lm_head', 'norm'],
  ),
  'bias': dict(
    r=2, lora_alpha=4, bias='lora_only', target_modules=r'.*vision_model.*\.(q_proj|fc1)'
  ),
}
BASES = {'bias': IDEFICS2}  # LLaMA has no biases.


def main() -> None:
  for name, settings in CASES.items():
    torch.manual_seed(len(name))
    of_base, folder = BASES.get(name, LLAMA)
    base = of_base.from_pretrained(folder, dtype=torch.float32)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(init_lora_weights=False, **settings))
    with torch.no_grad():  # As after a training.
      for key, value in model.named_parameters():
        if 'magnitude' in key:
          value *= 1 + 0.3 * torch.randn_like(value)
        elif value.requires_grad:
          value += 0.1 * torch.randn_like(value)
    model.base_model.model.config.name_or_path = folder.name
    model.peft_config['default'].base_model_name_or_path = folder.name
    model.save_pretrained(HERE / name)
    (HERE / name / 'README.md').unlink()
    merged = model.merge_and_unload().state_dict()
    changed = {key: value for key, value in merged.items() if not torch.equal(value, before[key])}
    save_file(changed, HERE / name / 'merged.safetensors')
    print(name, sorted(changed))


if __name__ == '__main__':
  main()
