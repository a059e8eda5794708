"""Records `transformers.ViTForImageClassification`, timm's ViT, and a ViT of vit_jax's files, at
tiny widths.

The last is written here: Google's code is no package. Its formulas are the paper's, its constants
(tanh GELU, ε = 1e-6) and names those of google-research/vision_transformer and
google-research/big_vision.

    pip install torch==2.13.0 transformers==5.23.0 timm==1.0.31 safetensors
    python tests/parity/record/vit.py
"""

import torch
from common import hidden_states, public_file, public_names, redrawn, save, write_names
from timm import create_model
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional as F
from transformers import ViTConfig, ViTForImageClassification

HUGGING_FACE = dict(
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  intermediate_size=48,
  image_size=16,
  patch_size=4,
  num_labels=5,
)
TIMM = dict(
  img_size=16, patch_size=4, embed_dim=128, depth=2, num_heads=2, mlp_ratio=1.0, num_classes=5
)
# vit_jax's files; big_vision's, with all layers in one array, or without a class token.
JAX = {
  "vit_jax": dict(cls=True, cls_position=True, scanned=False, pre_logits=12),
  "big_vision": dict(cls=True, cls_position=False, scanned=True, pre_logits=0),
  "big_vision_gap": dict(cls=False, cls_position=False, scanned=False, pre_logits=0),
}


def picture(height: int, width: int):
  return torch.randn(2, 3, height, width)


def record_hugging_face(config: dict, seed: int) -> dict:
  model = redrawn(ViTForImageClassification(ViTConfig(**config, attn_implementation="eager")), seed)
  hidden = hidden_states(model.vit.layers)
  image, wide = picture(16, 16), picture(12, 28)
  with torch.no_grad():
    logits = model(image).logits
    outputs = dict(logits=logits, wide=model(wide, interpolate_pos_encoding=True).logits)
  outputs["hidden"] = torch.stack(hidden[: config["num_hidden_layers"]])
  inputs = dict(image=image.permute(0, 2, 3, 1), wide=wide.permute(0, 2, 3, 1))
  return dict(
    config=model.config.to_diff_dict(), weights=public_file(model), inputs=inputs, outputs=outputs
  )


def record_timm(config: dict, seed: int) -> dict:
  model = redrawn(VisionTransformer(**config), seed)
  for x in model.state_dict().values():  # half the bytes
    x.copy_(x.half().float())
  hidden = hidden_states(model.blocks)
  image = picture(16, 16)
  with torch.no_grad():
    outputs = dict(logits=model(image), hidden=torch.stack(hidden))
  weights = {k: x.half() for k, x in model.state_dict().items()}
  return dict(
    config=config, weights=weights, inputs=dict(image=image.permute(0, 2, 3, 1)), outputs=outputs
  )


def jax_shapes(
  width, depth, heads, mlp, patch, grid, classes, *, cls, cls_position, scanned, pre_logits
) -> dict[str, tuple[int, ...]]:
  """Names and shapes of a file. big_vision's count a block's modules by kind, the older ones
  together.
  """
  older = not scanned and cls
  attention, norm, dense = ("_1", "_2", "_3") if older else ("_0", "_1", "_0")
  head_dim = width // heads
  block = {
    "LayerNorm_0/scale": (width,),
    "LayerNorm_0/bias": (width,),
    f"LayerNorm{norm}/scale": (width,),
    f"LayerNorm{norm}/bias": (width,),
    f"MlpBlock{dense}/Dense_0/kernel": (width, mlp),
    f"MlpBlock{dense}/Dense_0/bias": (mlp,),
    f"MlpBlock{dense}/Dense_1/kernel": (mlp, width),
    f"MlpBlock{dense}/Dense_1/bias": (width,),
    f"MultiHeadDotProductAttention{attention}/out/kernel": (heads, head_dim, width),
    f"MultiHeadDotProductAttention{attention}/out/bias": (width,),
  }
  for name in ("query", "key", "value"):
    block[f"MultiHeadDotProductAttention{attention}/{name}/kernel"] = (width, heads, head_dim)
    block[f"MultiHeadDotProductAttention{attention}/{name}/bias"] = (heads, head_dim)
  learned = "Transformer/posembed_input/pos_embedding" if older else "pos_embedding"
  shapes = {
    "embedding/kernel": (patch, patch, 3, width),
    "embedding/bias": (width,),
    learned: (1, grid**2 + cls_position, width),
    "Transformer/encoder_norm/scale": (width,),
    "Transformer/encoder_norm/bias": (width,),
    "head/kernel": (pre_logits or width, classes),
    "head/bias": (classes,),
  }
  if cls:
    shapes["cls"] = (1, 1, width)
  if pre_logits:
    shapes |= {"pre_logits/kernel": (width, pre_logits), "pre_logits/bias": (pre_logits,)}
  if scanned:
    shapes |= {f"Transformer/encoderblock/{k}": (depth, *v) for k, v in block.items()}
  else:
    shapes |= {
      f"Transformer/encoderblock_{i}/{k}": v for i in range(depth) for k, v in block.items()
    }
  return shapes if older else {f"params/{k}": v for k, v in shapes.items()}


def jax_forward(weights, image, depth, *, cls, cls_position, scanned, pre_logits):
  """`[B, H, W, 3]` → (each block's output, logits)."""
  w = {k.removeprefix("params/"): v for k, v in weights.items()}
  attention, second, mlp = ("_1", "_2", "_3") if not scanned and cls else ("_0", "_1", "_0")
  norm = lambda x, scale, bias: F.layer_norm(x, scale.shape, scale, bias, 1e-6)
  x = (
    F.conv2d(
      image.permute(0, 3, 1, 2),
      w["embedding/kernel"].permute(3, 2, 0, 1),
      w["embedding/bias"],
      stride=w["embedding/kernel"].shape[0],
    )
    .flatten(2)
    .mT
  )
  positions = w[
    "pos_embedding" if "pos_embedding" in w else "Transformer/posembed_input/pos_embedding"
  ]
  if not cls_position:
    x = x + positions
  if cls:
    x = torch.cat([w["cls"].expand(len(x), -1, -1), x], 1)
  if cls_position:
    x = x + positions
  hidden = []
  for i in range(depth):
    b = {
      k.split("/", 2)[2]: v[i] if scanned else v
      for k, v in w.items()
      if k.startswith("Transformer/encoderblock/" if scanned else f"Transformer/encoderblock_{i}/")
    }
    y = norm(x, b["LayerNorm_0/scale"], b["LayerNorm_0/bias"])
    name = f"MultiHeadDotProductAttention{attention}"
    q, k, v = (
      torch.einsum("btd,dhe->bhte", y, b[f"{name}/{part}/kernel"])
      + b[f"{name}/{part}/bias"][:, None]
      for part in ("query", "key", "value")
    )
    probabilities = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
    x = (
      x
      + torch.einsum("bhte,hed->btd", probabilities @ v, b[f"{name}/out/kernel"])
      + b[f"{name}/out/bias"]
    )
    y = norm(x, b[f"LayerNorm{second}/scale"], b[f"LayerNorm{second}/bias"])
    name = f"MlpBlock{mlp}"
    y = F.gelu(y @ b[f"{name}/Dense_0/kernel"] + b[f"{name}/Dense_0/bias"], approximate="tanh")
    x = x + y @ b[f"{name}/Dense_1/kernel"] + b[f"{name}/Dense_1/bias"]
    hidden.append(x)
  x = norm(x, w["Transformer/encoder_norm/scale"], w["Transformer/encoder_norm/bias"])
  x = x[:, 0] if cls else x.mean(1)
  if pre_logits:
    x = torch.tanh(x @ w["pre_logits/kernel"] + w["pre_logits/bias"])
  return torch.stack(hidden), x @ w["head/kernel"] + w["head/bias"]


def record_jax(kind: dict, seed: int) -> dict:
  generator = torch.Generator().manual_seed(seed)
  sizes = dict(width=24, depth=2, heads=3, mlp=40, patch=4, grid=4, classes=5)
  weights = {
    name: 0.1 * torch.randn(shape, generator=generator) + name.endswith("scale")
    for name, shape in jax_shapes(**sizes, **kind).items()
  }
  image = torch.randn(2, 16, 16, 3, generator=generator)
  hidden, logits = jax_forward(weights, image, sizes["depth"], **kind)
  return dict(
    config=dict(sizes, **kind),
    weights=weights,
    inputs=dict(image=image),
    outputs=dict(hidden=hidden, logits=logits),
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  save(
    "vit",
    {
      "hf": record_hugging_face(HUGGING_FACE, 0),
      "timm": record_timm(TIMM, 1),
      **{name: record_jax(kind, seed) for seed, (name, kind) in enumerate(JAX.items(), 2)},
    },
  )
  with torch.device("meta"):
    write_names("vit_b16_hf", public_names(ViTForImageClassification(ViTConfig(num_labels=1000))))
    timm = create_model("vit_base_patch16_224").state_dict()
    write_names("vit_b16_timm", {key: x.shape for key, x in timm.items()})
  base = dict(width=768, depth=12, heads=12, mlp=3072, patch=16, grid=14, classes=21843)
  write_names("vit_b16_npz", jax_shapes(**base, **{**JAX["vit_jax"], "pre_logits": 768}))
