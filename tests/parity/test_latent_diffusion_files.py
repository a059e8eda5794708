"""The text LDM as diffusers and its authors have it, and single files of the authors' code."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import vlx
from tests import contract
from tests.parity.recorded import PARITY, Recorded, as_tree, assert_parity, named_shapes
from vlx.core.errors import UserError
from vlx.core.system import flatten, variable_shapes
from vlx.inference import samplers
from vlx.inference.samplers import Sampler
from vlx.models.contrastive import clip as clip_models
from vlx.models.contrastive.clip import CLIPTextEncoder, TextTransformer
from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.pretrained import clip, compvis, ldm_bert, tables, unet
from vlx.pretrained.formats import TensorFile

FOLDER = PARITY / "ldm_text"


@pytest.fixture(scope="module")
def model():
  return vlx.load(FOLDER)


def test_a_text_ldm_is_read_and_gives_its_images(model, monkeypatch):
  recorded = Recorded("ldm_text", "pipeline")
  text, mask = model.tokenizer.encode_batch(recorded.config["prompts"], model.system.text_length)
  inputs = {"text": jnp.asarray(text), "text_mask": jnp.asarray(mask)}
  found = model.system._condition(model.variables, inputs, True)
  assert found.keys() == {"context"}
  assert_parity(found["context"], recorded.outputs["told"])
  drawn = jnp.asarray(recorded.inputs["latents"])
  monkeypatch.setattr(samplers, "noise", lambda *_: drawn)
  how = Sampler(recorded.config["num_steps"], spacing="leading", offset=1, guidance_scale=3.0)
  sample = jax.jit(lambda v: model.system.sample_images(v, inputs, jnp.arange(2), how))
  images = ((sample(model.variables) + 1) / 2).clip(0, 1)
  np.testing.assert_allclose(images, recorded.outputs["images"], atol=1e-4)


def test_the_authors_text_encoder():
  recorded = Recorded("ldm_text", "original")
  names = dict(compvis._pipeline_names(recorded.weights))
  shapes = {name: recorded.shapes[there] for name, there in names.items()}
  encoder = compvis._bert(shapes)
  wanted = contract.shapes(encoder)
  rows = ldm_bert.text_rows(8, ours="text", public="bert.")
  found = tables.read(rows, wanted, shapes, lambda name: recorded.weights[names[name]])
  text = jnp.asarray(recorded.inputs["text"])
  tokens = encoder.encode_text(as_tree(found, wanted), text, jnp.ones(text.shape, bool))
  assert_parity(tokens, recorded.outputs["tokens"])


# (file of the network's names, the text's, what stands before them), and the parameters of network and text.
L14 = clip_models.published_size("L/14")["text"]


def sd_names():
  text = CLIPTextEncoder(TextTransformer(**L14))
  rows = clip.text_rows(12, ours="text", public=compvis._CLIP)
  return named_shapes("sd_unet_original"), tables.public_shapes(rows, contract.shapes(text))


def ldm_names():
  network = named_shapes("sd_unet_original")
  wide = lambda name, shape: (
    (shape[0], 1280) if name.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) else shape
  )
  text = named_shapes("ldm_bert_original").items()
  return (
    {name: wide(name, shape) for name, shape in network.items()},
    {f"cond_stage_model.transformer.{name}": shape for name, shape in text},
  )


@pytest.mark.parametrize(
  "names, parameters, text_parameters, side",
  [(sd_names, 859_520_964, 123_060_480, 512), (ldm_names, 872_300_484, 542_895_360, 256)],
)
def test_a_file_of_a_published_model(names, parameters, text_parameters, side):
  network, text = names()
  vae = named_shapes("sd_vae_original")
  shapes = {
    **{f"model.diffusion_model.{name}": shape for name, shape in network.items()},
    **{f"first_stage_model.{name}": shape for name, shape in vae.items()},
    **text,
    "first_stage_model.loss.logvar": (),
    "betas": (1000,),
    "model_ema.num_updates": (),
  }
  file = compvis.adapted(TensorFile(shapes, lambda name: name, {}))
  layout = compvis.layout_of(file.shapes)
  wanted = variable_shapes(layout.system)
  assert tables.public_shapes(layout.rows, wanted) == file.shapes
  count = lambda start: sum(
    np.prod(x.shape, dtype=int) for n, x in flatten(wanted).items() if n.startswith(start)
  )
  of_parts = count("params/autoencoder"), count("params/text_encoder")
  assert of_parts == (83_653_863, text_parameters)
  assert count("params/") - sum(of_parts) == parameters
  assert layout.system.image_size == side and layout.system.text_length == 77


@pytest.mark.parametrize(
  "names, side, schedule", [("adm_imagenet64", 64, "cosine"), ("adm_imagenet256", 256, "linear")]
)
def test_files_of_adm(names, side, schedule):
  shapes = named_shapes(names)
  file = compvis.adapted(TensorFile(shapes, lambda name: name, {}))
  layout = compvis.layout_of(file.shapes)
  system = layout.system
  assert tables.public_shapes(layout.rows, variable_shapes(system)) == shapes
  assert (system.image_size, system.process.schedule) == (side, schedule)
  assert system.num_classes == 1000 and system.process.learned_variance
  assert (system.unet.attention_at, system.unet.head_dim) == (
    tuple(side // n for n in (32, 16, 8)),
    64,
  )


@pytest.mark.parametrize(
  "system",
  [
    KLAutoencoder(image_size=256, latent_channels=3, width=32, multipliers=(1, 2, 4)),
    VQAutoencoder(
      image_size=256,
      latent_channels=4,
      inner_channels=4,
      num_codes=9,
      width=32,
      multipliers=(1, 2),
      attention_at=(2,),
    ),
  ],
)
def test_files_of_autoencoders(system, tmp_path):
  variables = contract.init(system)
  rows = unet.autoencoder_rows(system, diffusers=False)
  tensors = {name: np.ascontiguousarray(x) for name, x in tables.export(rows, variables)}
  tensors["loss.logvar"] = np.zeros(1, np.float32)
  save_file(tensors, tmp_path / "model.safetensors")
  found = vlx.load(tmp_path / "model.safetensors")
  jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
  assert found.system.attention_at == system.attention_at


def _original_name(name):
  """From diffusers' name of the text encoder's tensors to its authors'."""
  for file_name in named_shapes("ldm_bert_original"):
    if f"bert.model.{compvis._bert_name(file_name)}" == name:
      return f"cond_stage_model.transformer.{file_name}"
  return name


@pytest.mark.parametrize("average", [False, True])
def test_of_a_network_its_average_is_read(model, average):
  system = model.system
  rows = [
    *unet.original_rows(system.unet, public=compvis.NETWORK),
    *unet.autoencoder_rows(
      system.autoencoder, diffusers=False, ours="autoencoder/", public=compvis.AUTOENCODER
    ),
    *ldm_bert.text_rows(2, ours="text_encoder/text", public="bert."),
  ]
  tensors = {_original_name(name): x for name, x in tables.export(rows, model.variables)}
  if average:
    for name in [n for n in tensors if n.startswith(compvis.NETWORK)]:
      tensors["model_ema." + name.removeprefix("model.").replace(".", "")] = tensors[name]
      tensors[name] = np.zeros_like(tensors[name])
  shapes = {name: x.shape for name, x in tensors.items()}
  file = compvis.adapted(TensorFile(shapes, tensors.__getitem__, {}))
  wanted = variable_shapes(system)
  found = as_tree(tables.read(rows, wanted, file.shapes, file.fetch), wanted)
  jax.tree.map(np.testing.assert_array_equal, found, model.variables)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"input_blocks.0.0.weight": (192, 6, 3, 3)}, "which are no upsamplers"),
    ({"input_blocks.0.0.weight": (96, 3, 3, 3)}, "vlx knows the released ones"),
    ({"input_blocks.0.0.weight": (100, 3, 3, 3)}, "multiples of the first layer's 100"),
    ({"out.2.weight": (6,)}, r"out.2.weight has the shape \[6\]"),
  ],
)
def test_networks_of_another_form_are_told(changes, message):
  with pytest.raises(UserError, match=message):
    compvis.layout_of({**named_shapes("adm_imagenet64"), **changes})
