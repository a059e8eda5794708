"""Records `transformers.CLIPModel` and `open_clip.CLIP` at tiny widths, and names of files at full
size.

pip install torch==2.13.0 transformers==5.23.0 open_clip_torch==3.3.0 safetensors
python tests/parity/record/clip.py
"""

import torch
from common import hidden_states, public_file, public_names, redrawn, save, write_names
from open_clip import get_model_config
from open_clip.model import CLIP
from transformers import CLIPConfig, CLIPModel

VISION = dict(
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  image_size=16,
  patch_size=4,
)
TEXT = dict(
  hidden_size=24,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=40,
  vocab_size=40,
  max_position_embeddings=12,
  bos_token_id=0,
)
HUGGING_FACE = {
  # The first configs say 2, and the feature is that of the greatest id.
  "greatest": dict(
    projection_dim=20, vision_config=VISION, text_config={**TEXT, "eos_token_id": 2}
  ),
  "first_eos": dict(
    projection_dim=16,
    vision_config={**VISION, "hidden_act": "gelu", "layer_norm_eps": 1e-6},
    text_config={
      **TEXT,
      "eos_token_id": 7,
      "hidden_act": "gelu",
      "hidden_size": 32,
      "num_attention_heads": 2,
    },
  ),
}
OPEN_CLIP = {
  # OpenAI's heads are 64 wide.
  "open_clip": dict(
    embed_dim=24,
    vision_cfg=dict(image_size=16, layers=2, width=64, patch_size=4, mlp_ratio=1.0),
    text_cfg=dict(context_length=12, vocab_size=40, width=128, heads=2, layers=1, mlp_ratio=1.0),
  ),
  "openai": dict(
    embed_dim=16,
    quick_gelu=True,
    vision_cfg=dict(image_size=24, layers=1, width=128, patch_size=8, mlp_ratio=1.0),
    text_cfg=dict(context_length=12, vocab_size=40, width=64, heads=1, layers=2, mlp_ratio=1.0),
  ),
  "resnet": dict(
    embed_dim=24,
    quick_gelu=True,
    vision_cfg=dict(image_size=96, layers=[2, 1, 2, 1], width=4, patch_size=None),
    text_cfg=dict(context_length=12, vocab_size=40, width=64, heads=1, layers=1, mlp_ratio=1.0),
  ),
  # What only its open_clip_config.json tells.
  "open_clip_config": dict(
    embed_dim=16,
    quick_gelu=True,
    vision_cfg=dict(image_size=16, layers=2, width=64, patch_size=8, mlp_ratio=1.0, head_width=16),
    text_cfg=dict(context_length=12, vocab_size=40, width=64, heads=2, layers=1, mlp_ratio=1.0),
  ),
}


RESNETS = ("rn50", "rn101", "rn50x4", "rn50x16", "rn50x64")


def texts(eos: int, words: int, length: int):
  """Ids with their end of text in some place and anything behind it, and the mask of what is
  before.
  """
  ends = torch.tensor([[length - 1], [5], [1]])
  text = torch.randint(0, words - 1, (3, length))
  text[text == eos] = 1
  text.scatter_(1, ends, eos)
  text[1, -1] = eos  # padding may be the same token
  return dict(text=text.int(), text_mask=torch.arange(length) <= ends)


def record_hugging_face(config: dict, seed: int) -> dict:
  model = redrawn(CLIPModel(CLIPConfig(**config, attn_implementation="eager")), seed)
  image_hidden = hidden_states(model.vision_model.encoder.layers)
  text_hidden = hidden_states(model.text_model.encoder.layers)
  section = config["text_config"]
  eos = section["eos_token_id"] if section["eos_token_id"] != 2 else section["vocab_size"] - 1
  inputs = texts(eos, section["vocab_size"], section["max_position_embeddings"])
  inputs |= dict(image=torch.randn(2, 3, 16, 16), wide=torch.randn(2, 3, 12, 28))
  with torch.no_grad():
    out = model(input_ids=inputs["text"].long(), pixel_values=inputs["image"])
    wide = model.get_image_features(inputs["wide"], interpolate_pos_encoding=True).pooler_output
  counts = [config[f"{x}_config"]["num_hidden_layers"] for x in ("vision", "text")]
  return dict(
    config=config,
    weights=public_file(model),
    inputs=channels_last(inputs),
    outputs=dict(
      image_hidden=torch.stack(image_hidden[: counts[0]]),
      text_hidden=torch.stack(text_hidden[: counts[1]]),
      wide=wide,
      logits=out.logits_per_image,
      image=out.image_embeds,
      text=out.text_embeds,
    ),
  )


def channels_last(inputs: dict) -> dict:
  return {k: x.permute(0, 2, 3, 1) if x.ndim == 4 else x for k, x in inputs.items()}


def record_open_clip(name: str, config: dict, seed: int) -> dict:
  model = redrawn(CLIP(**config), seed)
  generator = torch.Generator().manual_seed(seed)
  for module in model.modules():
    if isinstance(module, torch.nn.LayerNorm):
      module.weight.data.add_(1)
  with torch.no_grad():
    for key, x in model.state_dict().items():
      if key.endswith("running_var"):
        x.copy_(0.5 + torch.rand(x.shape, generator=generator))
      elif key.endswith("running_mean"):
        x.copy_(0.1 * torch.randn(x.shape, generator=generator))
      elif "bn" in key and key.endswith("weight") or "downsample.1.weight" in key:
        x.copy_(1 + 0.1 * torch.randn(x.shape, generator=generator))
      elif x.ndim == 4:
        x.copy_(torch.randn(x.shape, generator=generator) * x[0].numel() ** -0.5)
  for x in model.state_dict().values():  # half the bytes
    if x.is_floating_point():
      x.copy_(x.half().float())
  resnet = name == "resnet"
  visual = model.visual
  layers = (
    [visual.act3, *(getattr(visual, f"layer{i}") for i in (1, 2, 3, 4))]
    if resnet
    else (visual.transformer.resblocks)
  )
  image_hidden, text_hidden = hidden_states(layers), hidden_states(model.transformer.resblocks)
  size, words = config["vision_cfg"]["image_size"], config["text_cfg"]["vocab_size"]
  inputs = texts(words - 1, words, config["text_cfg"]["context_length"])
  inputs |= dict(image=torch.randn(2, 3, size, size))
  with torch.no_grad():
    outputs = dict(
      image=model.encode_image(inputs["image"]),
      text=model.encode_text(inputs["text"].long()),
      logits=model.get_logits(inputs["image"], inputs["text"].long())[0],
    )
  image_hidden = image_hidden[: len(layers)]
  if resnet:
    outputs |= {f"image_hidden{i}": x.permute(0, 2, 3, 1) for i, x in enumerate(image_hidden)}
  else:
    outputs |= dict(image_hidden=torch.stack(image_hidden))
  outputs |= dict(text_hidden=torch.stack(text_hidden[: config["text_cfg"]["layers"]]))
  weights = {k: x.half() if x.is_floating_point() else x for k, x in model.state_dict().items()}
  if not name.startswith("open_clip"):  # what OpenAI's archives hold besides
    weights |= {k: torch.tensor(v) for k, v in constants(config).items()}
  return dict(config=config, weights=weights, inputs=channels_last(inputs), outputs=outputs)


def constants(config: dict) -> dict:
  return dict(
    input_resolution=config["vision_cfg"]["image_size"],
    vocab_size=config["text_cfg"]["vocab_size"],
    context_length=config["text_cfg"]["context_length"],
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  save(
    "clip_hf", {n: record_hugging_face(c, seed) for seed, (n, c) in enumerate(HUGGING_FACE.items())}
  )
  cases = {n: record_open_clip(n, c, seed) for seed, (n, c) in enumerate(OPEN_CLIP.items())}
  save("clip_resnet", {"resnet": cases.pop("resnet")})
  save("clip_openai", cases)
  with torch.device("meta"):
    write_names("clip_vit_b32_hf", public_names(CLIPModel(CLIPConfig())))
    for file, name in (
      ("clip_vit_b32_openai", "ViT-B-32-quickgelu"),
      *((f"clip_{n}_openai", f"{n.upper().replace('X', 'x')}-quickgelu") for n in RESNETS),
    ):
      config = get_model_config(name)
      shapes = {key: x.shape for key, x in CLIP(**config).state_dict().items()}
      write_names(file, {**shapes, **{k: () for k in constants(config)}})
