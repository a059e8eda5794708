"""Records dalle-pytorch's transformer in the settings where it equals the paper's.

`attn_types=("full", "axial_col")`, without rotary embeddings, shifted tokens and sandwich norms: its
"axial_row" ends at the row's start and its "conv_like" has no right half, so those are not the paper's. Its
layer scales are folded into what they scale, its gated MLP is an ungated one where the gate's partner is 1
(weights 0, bias 1), and its GELU is set to the tanh form. The final norm is the one before its logits. Its
first text position is one more than the text is long (the start token), and the last code is never read.

    pip install torch==2.13.0 safetensors einops
    pip install --no-deps dalle-pytorch==1.6.6
    python tests/parity/record/dalle.py
"""

import functools
import importlib.util
import sys
import types

import torch
from common import redrawn, save
from torch.nn import functional as F

TEXT, SIDE = 8, 4
TINY = dict(dim=24, depth=4, heads=3, dim_head=8, seq_len=TEXT + SIDE**2, image_fmap_size=SIDE)


def transformer_module():
  """`dalle_pytorch.transformer` alone: the package's start wants what no transformer needs."""
  for name, names in {
    "rotary_embedding_torch": ("RotaryEmbedding", "broadcat", "apply_rotary_emb")
  }.items():
    sys.modules[name] = types.ModuleType(name)
    for attribute in names:
      setattr(sys.modules[name], attribute, None)
  package = types.ModuleType("dalle_pytorch")
  package.__path__ = importlib.util.find_spec("dalle_pytorch").submodule_search_locations
  sys.modules["dalle_pytorch"] = package
  return importlib.import_module("dalle_pytorch.transformer")


def public(model, norm) -> dict[str, torch.Tensor]:
  """Weights by layer, scales folded in and the gate's constant partner left out."""
  out = {"norm.weight": norm.weight, "norm.bias": norm.bias}
  for i, (attention, mlp) in enumerate(model.layers.layers):
    attend = attention.fn.fn.fn
    first, last = mlp.fn.fn.net[0], mlp.fn.fn.net[3]
    for name, weight in zip("qkv", attend.to_qkv.weight.chunk(3)):
      out[f"layers.{i}.{name}.weight"] = weight
    for name, scale, layer in (
      ("out", attention.scale, attend.to_out[0]),
      ("fc2", mlp.scale, last),
    ):
      out[f"layers.{i}.{name}.weight"] = layer.weight * scale[0, 0][:, None]
      out[f"layers.{i}.{name}.bias"] = layer.bias * scale[0, 0]
    out[f"layers.{i}.fc1.weight"], out[f"layers.{i}.fc1.bias"] = (
      x.chunk(2)[1] for x in (first.weight, first.bias)
    )
    for name, block in (("norm1", attention), ("norm2", mlp)):
      out |= {f"layers.{i}.{name}.{k}": v for k, v in block.fn.norm.state_dict().items()}
  return out


if __name__ == "__main__":
  torch.manual_seed(0)
  module = transformer_module()
  module.F = types.SimpleNamespace(gelu=functools.partial(F.gelu, approximate="tanh"), pad=F.pad)
  model = redrawn(
    module.Transformer(
      **TINY,
      attn_types=("full", "axial_col"),
      rotary_emb=False,
      shift_tokens=False,
      sandwich_norm=False,
      ff_mult=2,
      reversible=False,
    ),
    0,
  )
  norm = redrawn(torch.nn.LayerNorm(TINY["dim"]), 1)
  with torch.no_grad():
    norm.weight.add_(1)
    for attention, mlp in model.layers.layers:
      first = mlp.fn.fn.net[0]
      half = len(first.bias) // 2
      first.weight[:half], first.bias[:half] = 0, 1
      for block in (attention, mlp):
        block.scale.add_(1)
    x = torch.randn(2, TINY["seq_len"], TINY["dim"])
    out = norm(model(x))
  save(
    "dalle",
    {
      "tiny": dict(
        config={**TINY, "text": TEXT + 1, "mlp_dim": 2 * TINY["dim"]},
        weights=public(model, norm),
        inputs=dict(x=x),
        outputs=dict(out=out),
      )
    },
  )
