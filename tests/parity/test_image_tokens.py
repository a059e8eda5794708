"""Image tokenizers against their references: OpenAI's discrete VAE, dm-haiku's vector
quantisers.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from tests import contract
from tests.parity.recorded import as_tree
from vlx.models.generation import dalle, dvae, vqvae
from vlx.pretrained import dvae as dvae_names
from vlx.pretrained import tables

PARITY = pathlib.Path(__file__).parent


def assert_parity(found, expected):
  np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def metadata(file):
  with safe_open(PARITY / file, "numpy") as tensors:
    return tensors.metadata()


def part(tensors, prefix):
  return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def test_dvae():
  config = json.loads(metadata("dvae.safetensors")["tiny"])
  tensors = load_file(PARITY / "dvae.safetensors")
  weights, outputs = part(tensors, "tiny/weights/"), part(tensors, "tiny/outputs/")
  image = jnp.asarray(2 * tensors["tiny/inputs/image"] - 1)
  system = dvae.DVAE(32, config["n_hid"], config["vocab_size"], config["code_dim"])
  wanted = contract.shapes(system)
  shapes = {name: x.shape for name, x in weights.items()}
  variables = as_tree(tables.read(dvae_names.rows(), wanted, shapes, weights.__getitem__), wanted)
  apply = jax.jit(system._apply, static_argnums=1)
  logits = apply(variables, "encode", dvae.map_pixels(image))
  assert_parity(logits, outputs["logits"])
  assert_parity(apply(variables, "decode", jax.nn.softmax(logits)), outputs["soft"])
  np.testing.assert_array_equal(jax.jit(system.image_to_tokens)(variables, image), outputs["ids"])
  assert_parity((jax.jit(system.reconstruct)(variables, image) + 1) / 2, outputs["reconstruction"])
  returned = dict(tables.export(dvae_names.rows(), variables))
  assert returned.keys() == weights.keys()
  for name, tensor in weights.items():
    np.testing.assert_array_equal(returned[name], tensor, err_msg=name)


def test_dvae_table_is_that_of_the_public_files():
  system = dvae.DVAE(**dvae.published_size())
  params = contract.shapes(system)["params"]
  lines = (PARITY / "names" / "dvae.txt").read_text().splitlines()
  published = {name: tuple(map(int, shape)) for name, *shape in map(str.split, lines)}
  assert tables.public_shapes(dvae_names.rows(), {"params": params}) == published


@pytest.mark.parametrize("case", ["loss", "ema"])
def test_vector_quantiser(case):
  """Three steps: codes, losses, perplexity, the gradient past the codes, and the averages'
  codebook.
  """
  config = json.loads(metadata("vqvae.safetensors")["config"])
  tensors = load_file(PARITY / "vqvae.safetensors")
  averages = vqvae.init_averages(jnp.asarray(tensors["codebook"]))
  for i, z in enumerate(tensors["inputs"]):
    expected = part(tensors, f"{case}/{i}/")

    def total(z):
      found = vqvae.quantize(z, averages["codebook"])
      loss = config["beta"] * found.commitment + (found.codebook_loss if case == "loss" else 0)
      return (found.codes**2).sum() + loss, (found, loss)

    (_, (found, loss)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(jnp.asarray(z))
    np.testing.assert_array_equal(found.ids, expected["ids"])
    assert_parity(found.codes, expected["quantized"])
    assert_parity(loss, expected["loss"])
    assert_parity(
      vqvae.codebook_usage(found.ids, config["num_codes"])["perplexity"], expected["perplexity"]
    )
    assert_parity(gradient, expected["gradient"])
    if case == "ema":
      averages = vqvae.update_codebook_ema(
        averages,
        jnp.asarray(z),
        found.ids,
        jax.random.key(0),
        decay=config["decay"],
        restart_below=0.0,
      )
      assert_parity(averages["codebook"], expected["codebook"])


def test_dalle():
  """The decoder's layers, masks "full" and "column" in turn; the reference leaves out the last
  position.
  """
  config = json.loads(metadata("dalle.safetensors")["tiny"])
  tensors = load_file(PARITY / "dalle.safetensors")
  weights = part(tensors, "tiny/weights/")
  heads, side = config["heads"], config["image_fmap_size"]
  layout = dalle.SequenceLayout(config["text"], side, side, 3)
  network = dalle.DALLENetwork(
    layout,
    ("full", "column") * (config["depth"] // 2),
    vocab_size=5,
    num_codes=5,
    width=config["dim"],
    num_heads=heads,
    mlp_dim=config["mlp_dim"],
    remat=False,
    unroll=1,
    dtype="float32",
  )
  text = jnp.zeros((1, layout.text), jnp.int32)
  ids = jnp.zeros((1, side**2), jnp.int32)
  params = jax.jit(network.init)(jax.random.key(0), text, text == 0, ids)["params"]
  layer, block = "layers.{layer}", "params/blocks"
  rows = [
    tables.Row("norm.weight", "params/final_norm/scale"),
    tables.Row("norm.bias", "params/final_norm/bias"),
  ]
  for norm, ours in (("norm1", "attention_norm"), ("norm2", "mlp_norm")):
    rows += [
      tables.Row(f"{layer}.{norm}.weight", f"{block}/{ours}/scale"),
      tables.Row(f"{layer}.{norm}.bias", f"{block}/{ours}/bias"),
    ]
  for name, ours in zip("qkv", ("query", "key", "value")):
    kernel = ("(h e) d -> d h e", {"h": heads})
    rows.append(tables.Row(f"{layer}.{name}.weight", f"{block}/attention/{ours}/kernel", kernel))
  rows += [
    tables.Row(
      f"{layer}.out.weight", f"{block}/attention/out/kernel", ("d (h e) -> h e d", {"h": heads})
    ),
    tables.Row(f"{layer}.out.bias", f"{block}/attention/out/bias"),
  ]
  for name in ("fc1", "fc2"):
    rows += [
      tables.Row(f"{layer}.{name}.weight", f"{block}/mlp/{name}/kernel", ("o i -> i o", {})),
      tables.Row(f"{layer}.{name}.bias", f"{block}/mlp/{name}/bias"),
    ]
  attention = {n: dict(p) for n, p in params["blocks"]["attention"].items()}
  for name in ("query", "key", "value"):  # zero, as the reference has none
    np.testing.assert_array_equal(attention[name].pop("bias"), 0)
  blocks = {**params["blocks"], "attention": attention}
  wanted = {"params": {"blocks": blocks, "final_norm": params["final_norm"]}}
  found = tables.read(rows, wanted, {n: x.shape for n, x in weights.items()}, weights.__getitem__)
  loaded = as_tree(found, wanted)["params"]
  for name in ("query", "key", "value"):
    loaded["blocks"]["attention"][name]["bias"] = params["blocks"]["attention"][name]["bias"]
  x = tensors["tiny/inputs/x"]
  x = np.concatenate([x, np.ones_like(x[:, :1])], axis=1)
  found, _ = jax.jit(lambda p, x: network.apply({"params": p}, x, method="decode"))(
    {**params, **loaded}, x
  )
  assert_parity(found[:, :-1], tensors["tiny/outputs/out"])
