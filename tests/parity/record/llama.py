"""Records `transformers.LlamaForCausalLM` at tiny widths, and the names of its public file at full
size.

Case `meta` is LLaMA in Meta's names and layout, as Touvron et al. (2023a) and Su et al. (2021) give
it, with the rotation as a product of complex numbers: written here, for Meta's code is no package.

    pip install torch==2.13.0 transformers==5.23.0 safetensors
    python tests/parity/record/llama.py
"""

import torch
from common import hidden_states, public_file, redrawn, save, save_names
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

TINY = dict(
  vocab_size=50,
  hidden_size=32,
  num_hidden_layers=3,
  num_attention_heads=4,
  num_key_value_heads=4,
  intermediate_size=48,
  max_position_embeddings=32,
  rms_norm_eps=1e-5,
  tie_word_embeddings=False,
  rope_parameters=dict(rope_type="default", rope_theta=10000.0),
)
CASES = {
  "heads": TINY,
  "groups": {
    **TINY,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6,
    "rope_parameters": dict(rope_type="default", rope_theta=100000.0),
  },
  "tied": {
    **TINY,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "hidden_size": 48,
    "tie_word_embeddings": True,
  },
}
LENGTH = 13


def inputs(config: dict) -> dict:
  text = torch.randint(0, config["vocab_size"], (3, LENGTH))
  return dict(text=text.int(), text_mask=torch.arange(LENGTH) < torch.tensor([[LENGTH], [7], [1]]))


def record(config: dict, seed: int) -> dict:
  model = redrawn(LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager")), seed)
  hidden = hidden_states(model.model.layers)
  given = inputs(config)
  with torch.no_grad():
    logits = model(given["text"].long(), attention_mask=given["text_mask"].long()).logits
  return dict(
    config=config,
    weights=public_file(model),
    inputs=given,
    outputs=dict(hidden=torch.stack(hidden), logits=logits),
  )


def rms_norm(x, scale, epsilon):
  return scale * x * (x.pow(2).mean(-1, keepdim=True) + epsilon) ** -0.5


def turned(x, theta):
  """`[B, T, H, E]`: features 2i and 2i + 1, a complex number, times exp(√−1 · position ·
  θ^(−2i/E)).
  """
  half = x.shape[-1] // 2
  angles = torch.arange(x.shape[1])[:, None] * theta ** (-torch.arange(half) / half)
  pairs = torch.view_as_complex(x.unflatten(-1, (half, 2)).contiguous())
  return torch.view_as_real(pairs * torch.exp(1j * angles)[:, None]).flatten(-2)


def meta_forward(weights, config, text):
  heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
  theta, epsilon = config["rope_parameters"]["rope_theta"], config["rms_norm_eps"]
  seen = torch.ones(text.shape[1], text.shape[1]).tril().bool()
  x, hidden = weights["tok_embeddings.weight"][text], []
  for i in range(config["num_hidden_layers"]):
    w = {
      n.removeprefix(f"layers.{i}."): v for n, v in weights.items() if n.startswith(f"layers.{i}.")
    }
    y = rms_norm(x, w["attention_norm.weight"], epsilon)
    q, k, v = (
      (y @ w[f"attention.w{n}.weight"].T).unflatten(-1, (count, -1))
      for n, count in (("q", heads), ("k", groups), ("v", groups))
    )
    q, k = turned(q, theta), turned(k, theta)
    k, v = (z.repeat_interleave(heads // groups, dim=2) for z in (k, v))
    scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / q.shape[-1] ** 0.5
    y = torch.einsum("bhqk,bkhe->bqhe", scores.where(seen, -torch.inf).softmax(-1), v).flatten(-2)
    x = x + y @ w["attention.wo.weight"].T
    y = rms_norm(x, w["ffn_norm.weight"], epsilon)
    gate, up = (y @ w[f"feed_forward.{n}.weight"].T for n in ("w1", "w3"))
    x = x + (F.silu(gate) * up) @ w["feed_forward.w2.weight"].T
    hidden.append(x)
  logits = rms_norm(x, weights["norm.weight"], epsilon) @ weights["output.weight"].T
  return torch.stack(hidden), logits


def record_meta(config: dict, seed: int) -> dict:
  generator = torch.Generator().manual_seed(seed)
  width, mlp, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
  kv = width // config["num_attention_heads"] * config["num_key_value_heads"]
  shapes = {"tok_embeddings": (words, width), "norm": (width,), "output": (words, width)}
  for i in range(config["num_hidden_layers"]):
    shapes |= {
      f"layers.{i}.{name}": shape
      for name, shape in {
        "attention_norm": (width,),
        "ffn_norm": (width,),
        "attention.wq": (width, width),
        "attention.wk": (kv, width),
        "attention.wv": (kv, width),
        "attention.wo": (width, width),
        "feed_forward.w1": (mlp, width),
        "feed_forward.w2": (width, mlp),
        "feed_forward.w3": (mlp, width),
      }.items()
    }
  weights = {
    f"{name}.weight": 0.1 * torch.randn(shape, generator=generator) + ("norm" in name)
    for name, shape in shapes.items()
  }
  given = inputs(config)
  hidden, logits = meta_forward(weights, config, given["text"].long())
  return dict(
    config=config, weights=weights, inputs=given, outputs=dict(hidden=hidden, logits=logits)
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  cases = {name: record(config, seed) for seed, (name, config) in enumerate(CASES.items())}
  save("llama", {**cases, "meta": record_meta({**TINY, "num_key_value_heads": 2}, len(cases))})
  with torch.device("meta"):
    save_names("llama_7b", LlamaForCausalLM(LlamaConfig()))
