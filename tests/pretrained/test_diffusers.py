"""Folders of diffusers: there and back, and what is told of those that do not fit."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import vlx
from tests import contract
from tests.parity.recorded import PARITY
from vlx import convert
from vlx.core.errors import UserError
from vlx.inference.diffusion import Process
from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.models.generation.ddpm import DDPM
from vlx.models.layers.unet import UNet

PIPELINE, LDM = PARITY / "stable_diffusion", PARITY / "ldm_text"
SMALL = dict(width=4, multipliers=(1, 2), num_blocks=1, groups=2)


def arrays(variables):
  return jax.tree.map(np.asarray, variables)


KARLO = ("prior", "decoder", "text_encoder", "text_proj", "super_res_first", "super_res_last")


@pytest.mark.parametrize(
  "folder, parts",
  [
    (PIPELINE, ("unet", "vae", "text_encoder")),
    (LDM, ("unet", "vqvae", "bert")),
    (PARITY / "karlo", KARLO),
  ],
)
def test_a_pipeline_there_and_back(folder, parts, tmp_path):
  convert.to_vlx(folder, tmp_path / "vlx")
  model, public = vlx.load(tmp_path / "vlx"), vlx.load(folder)
  assert model.system == public.system
  jax.tree.map(np.testing.assert_array_equal, arrays(model.variables), arrays(public.variables))
  assert model.tokenizer.tokens("a cab") == public.tokenizer.tokens("a cab")
  convert.to_hugging_face(tmp_path / "vlx", tmp_path / "back")
  for part in parts:
    (file,) = (tmp_path / "back" / part).glob("*.safetensors")
    there, here = load_file(folder / part / file.name), load_file(file)
    if part == "text_encoder":  # transformers reads either name
      there = {
        name if name.startswith("text_") else f"text_model.{name}": x for name, x in there.items()
      }
    there = {name: x for name, x in there.items() if not name.startswith("to_logits")}
    assert there.keys() == here.keys()
    for name in there:
      np.testing.assert_array_equal(here[name], there[name], err_msg=name)
  assert vlx.load(tmp_path / "back").system == public.system


SYSTEMS = {
  "ddpm": DDPM(
    unet=UNet(3, **SMALL, attention_at=(2,), epsilon=1e-6), image_size=8, condition_dropout=0.0
  ),
  "adm": DDPM(
    unet=UNet(
      6,
      **SMALL,
      attention_at=(2,),
      head_dim=2,
      scale_shift=True,
      residual_resampling=True,
      num_classes=5,
    ),
    image_size=8,
    num_classes=5,
    condition_dropout=0.0,
    process=Process(schedule="cosine", learned_variance=True),
  ),
  "kl": KLAutoencoder(image_size=16, latent_channels=3, **SMALL),
  "vq": VQAutoencoder(
    image_size=16, latent_channels=3, inner_channels=2, num_codes=7, **SMALL, attention_at=(2,)
  ),
}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_comes_back_as_it_was(name, tmp_path):
  system = SYSTEMS[name]
  variables = contract.init(system)
  convert.save_vlx(tmp_path / "vlx", system, variables, "decode|normalize")
  convert.to_hugging_face(tmp_path / "vlx", tmp_path / "public")
  model = vlx.load(tmp_path / "public")
  assert model.system == system
  jax.tree.map(np.testing.assert_array_equal, arrays(model.variables), arrays(variables))


def test_a_latent_diffusion_of_nothing(tmp_path):
  for name, place in (("ddpm", "pixels"), ("vq", "pipeline/vqvae")):
    variables = contract.init(SYSTEMS[name])
    convert.save_vlx(tmp_path / name, SYSTEMS[name], variables, "decode|normalize")
    convert.to_hugging_face(tmp_path / name, tmp_path / place)
  (tmp_path / "pixels" / "unet").rename(tmp_path / "pipeline" / "unet")
  (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "LDMPipeline"}')
  model = vlx.load(tmp_path / "pipeline")
  assert model.system.autoencoder == SYSTEMS["vq"] and model.system.unet == SYSTEMS["ddpm"].unet
  assert model.system.x0_shape == (8, 8, 3) and model.system.latent_scale == 1.0
  assert model.generate_images("", 2, num_steps=2).shape == (2, 16, 16, 3)


def test_what_diffusers_has_no_place_for_is_told(tmp_path):
  system = dataclasses.replace(
    SYSTEMS["ddpm"], unet=UNet(3, **SMALL, attention_at=(2,), num_heads=2)
  )
  convert.save_vlx(tmp_path / "vlx", system, contract.init(system), "decode|normalize")
  with pytest.raises(UserError, match="heads of one width"):
    convert.to_hugging_face(tmp_path / "vlx", tmp_path / "public")


def damaged(folder, file, **changes):
  shutil.copytree(PIPELINE, folder)
  told = json.loads((folder / file).read_text())
  (folder / file).write_text(json.dumps({**told, **changes}))
  return folder


@pytest.mark.parametrize(
  "file, changes, message",
  [
    (
      "model_index.json",
      dict(_class_name="KandinskyPipeline"),
      "the pipeline is 'KandinskyPipeline'; vlx knows",
    ),
    ("unet/config.json", dict(act_fn="gelu"), "act_fn is 'gelu'; vlx supports 'silu' only"),
    (
      "unet/config.json",
      dict(cross_attention_dim=9),
      "cross_attention_dim is 9; vlx supports 8 only",
    ),
    ("unet/config.json", dict(block_out_channels=[8, 12]), "multiples of the first"),
    ("unet/config.json", dict(norm_num_groups=3), "does not divide by norm_num_groups 3"),
    ("unet/config.json", dict(down_block_types=["DownBlock2D"]), "not a list of 2 blocks"),
    (
      "unet/config.json",
      dict(down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"]),
      "not the mirror image of down_block_types",
    ),
    ("vae/config.json", dict(latent_channels=5), "in_channels is 4; vlx supports 5 only"),
    ("vae/config.json", dict(scaling_factor=0), "scaling_factor is 0, not a positive number"),
    (
      "scheduler/scheduler_config.json",
      dict(prediction_type="flow"),
      "prediction_type is 'flow'; vlx knows",
    ),
    (
      "tokenizer/tokenizer_config.json",
      dict(pad_token="<nothing>"),
      "is no token of the vocabulary",
    ),
  ],
)
def test_pipelines_that_do_not_fit_are_told(tmp_path, file, changes, message):
  with pytest.raises(UserError, match=message):
    vlx.load(damaged(tmp_path / "folder", file, **changes))


def test_a_part_that_is_missing_or_alone_is_told(tmp_path):
  shutil.copytree(PIPELINE, tmp_path / "folder")
  with pytest.raises(UserError, match="name the pipeline's folder"):
    vlx.load(tmp_path / "folder" / "unet")
  (tmp_path / "folder" / "vae" / "config.json").unlink()
  with pytest.raises(UserError, match="has no vae/config.json"):
    vlx.load(tmp_path / "folder")
