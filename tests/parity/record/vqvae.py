"""Records dm-haiku's vector quantisers: three steps of training each, of one codebook by its loss,
of one by averages.

    pip install dm-haiku==0.0.17 jax safetensors
    python tests/parity/record/vqvae.py
"""

import importlib.metadata
import json
import pathlib

import haiku as hk
import jax
import numpy as np
from safetensors.numpy import save_file

CONFIG = dict(num_codes=12, code_dim=5, beta=0.25, decay=0.9)
STEPS = 3


def record(make, inputs, codebook):
  quantise = hk.transform_with_state(lambda z: make()(z, is_training=True))
  params, state = quantise.init(jax.random.key(0), inputs[0])
  start = lambda tree: {
    m: {k: codebook.T if k == "embeddings" else v for k, v in d.items()} for m, d in tree.items()
  }
  params, state = start(params), start(state)
  outputs = {}
  for i, z in enumerate(inputs):

    def total(z):
      out, new = quantise.apply(params, state, None, z)
      return (out["quantize"] ** 2).sum() + out["loss"], (out, new)

    (_, (out, new)), gradient = jax.value_and_grad(total, has_aux=True)(z)
    state = new
    outputs |= {
      f"{i}/ids": out["encoding_indices"],
      f"{i}/quantized": out["quantize"],
      f"{i}/loss": out["loss"],
      f"{i}/perplexity": out["perplexity"],
      f"{i}/gradient": gradient,
    }
    moved = [d["embeddings"] for d in state.values() if "embeddings" in d]
    if moved:
      outputs[f"{i}/codebook"] = moved[0].T
  return outputs


if __name__ == "__main__":
  rng = np.random.default_rng(0)
  inputs = rng.normal(size=(STEPS, 3, 4, 4, CONFIG["code_dim"])).astype(np.float32)
  codebook = rng.normal(size=(CONFIG["num_codes"], CONFIG["code_dim"])).astype(np.float32)
  codebook[0] = 9.0  # near to nothing
  sizes = dict(
    embedding_dim=CONFIG["code_dim"],
    num_embeddings=CONFIG["num_codes"],
    commitment_cost=CONFIG["beta"],
  )
  cases = {
    "loss": record(lambda: hk.nets.VectorQuantizer(**sizes), inputs, codebook),
    "ema": record(
      lambda: hk.nets.VectorQuantizerEMA(**sizes, decay=CONFIG["decay"]), inputs, codebook
    ),
  }
  tensors = {
    f"{case}/{name}": np.array(x) for case, outputs in cases.items() for name, x in outputs.items()
  }
  tensors |= {"inputs": inputs, "codebook": codebook}
  versions = {p: importlib.metadata.version(p) for p in ("dm-haiku", "jax")}
  save_file(
    tensors,
    pathlib.Path(__file__).resolve().parents[1] / "vqvae.safetensors",
    {"config": json.dumps(CONFIG), "versions": json.dumps(versions)},
  )
