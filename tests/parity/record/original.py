"""Records UNets and an autoencoder of the code that their authors published, at tiny widths and under
the names of their checkpoints: openai/guided-diffusion's ADM, and CompVis' and Stability's `ldm`.
Names of files at full size as well.

Both are on PyPI, packed by others. Their norms have 32 groups whatever the width; here they are made
8, as a norm of each channel for itself hides what the time adds to it. Of what they import, two
packages are for training and configuration only, and are stood in for.

    pip install torch==2.13.0 numpy Pillow einops==0.8.2 safetensors
    pip install --no-deps guided-diffusion-sdk==1.0.0 stable-diffusion-sdkit==2.1.5
    python tests/parity/record/original.py
"""

import sys
import types
from collections.abc import Callable

import torch
from common import half_file, halved, redrawn, save, telling, write_names

_lightning = types.ModuleType("pytorch_lightning")
_lightning.LightningModule = torch.nn.Module
_omegaconf = types.ModuleType("omegaconf.listconfig")
_omegaconf.ListConfig = type("ListConfig", (), {})
sys.modules["pytorch_lightning"] = _lightning
sys.modules["omegaconf"] = types.ModuleType("omegaconf")
sys.modules["omegaconf.listconfig"] = _omegaconf

from guided_diffusion.script_util import create_model  # noqa: E402
from guided_diffusion.unet import UNetModel as ADM  # noqa: E402
from ldm.models.autoencoder import AutoencoderKL  # noqa: E402
from ldm.modules.diffusionmodules.openaimodel import UNetModel  # noqa: E402

GROUPS = 8
PACKAGES = ("guided-diffusion-sdk", "stable-diffusion-sdkit")
OF_IMAGES = dict(
  attention_resolutions=(2,),
  channel_mult=(1, 1),
  image_size=16,
  in_channels=3,
  model_channels=32,
  num_classes=5,
  num_head_channels=16,
  num_res_blocks=1,
  out_channels=6,  # noise and variance
  resblock_updown=True,
  use_scale_shift_norm=True,
)
# Their ImageNet model of 64 × 64 has the heads inside of q, k and v; those of more have q, k and v
# inside of each head.
IMAGES = {
  "adm": dict(OF_IMAGES, use_new_attention_order=True),
  "adm_legacy": dict(OF_IMAGES, use_new_attention_order=False),
}
LATENTS = dict(
  image_size=8, in_channels=4, num_heads=8, out_channels=4, use_spatial_transformer=True
)
TEXT = {
  "sd": dict(
    LATENTS,
    attention_resolutions=(1,),
    channel_mult=(1, 1),
    context_dim=24,
    legacy=False,
    model_channels=32,
    num_res_blocks=2,
    transformer_depth=1,
  )
}
STABLE_DIFFUSION = dict(
  LATENTS,
  attention_resolutions=(4, 2, 1),
  channel_mult=(1, 2, 4, 4),
  context_dim=768,
  legacy=False,
  model_channels=320,
  num_res_blocks=2,
  transformer_depth=1,
)
PICTURES = dict(attn_resolutions=[], double_z=True, dropout=0.0, in_channels=3, out_ch=3)
KL = {"kl": dict(PICTURES, ch=32, ch_mult=(1, 2), num_res_blocks=1, resolution=16, z_channels=4)}
STABLE_DIFFUSION_KL = dict(
  PICTURES, ch=128, ch_mult=(1, 2, 4, 4), num_res_blocks=2, resolution=256, z_channels=4
)
# README of guided-diffusion.
IMAGENET = dict(
  class_cond=True,
  learn_sigma=True,
  num_head_channels=64,
  resblock_updown=True,
  use_scale_shift_norm=True,
)
IMAGENET_64 = dict(
  IMAGENET,
  attention_resolutions="32,16,8",
  image_size=64,
  num_channels=192,
  num_res_blocks=3,
  use_new_attention_order=True,
)
IMAGENET_256 = dict(
  IMAGENET, attention_resolutions="32,16,8", image_size=256, num_channels=256, num_res_blocks=2
)


def last(x: torch.Tensor) -> torch.Tensor:
  return x.permute(0, 2, 3, 1) if x.ndim == 4 else x


def prepared(model: torch.nn.Module, seed: int) -> torch.nn.Module:
  redrawn(model, seed)
  for name, module in model.named_modules():
    if isinstance(module, torch.nn.GroupNorm):
      module.num_groups = GROUPS
      if "norm" not in name.lower():  # not called so
        module.weight.data.add_(1)
  return halved(telling(model))


def case(model, config: dict, inputs: dict, outputs: dict) -> dict:
  return dict(
    config=dict(config, num_groups=GROUPS),
    weights=half_file(model.state_dict()),
    inputs={k: last(x if x.is_floating_point() else x.int()) for k, x in inputs.items()},
    outputs={k: last(x) for k, x in outputs.items()},
  )


def record_unet(kind: Callable, config: dict, inputs: dict, seed: int) -> dict:
  model = prepared(kind(**config), seed)
  middle = []
  model.middle_block.register_forward_hook(lambda _, __, out: middle.append(out))
  with torch.no_grad():
    sample = model(**inputs)
  return case(model, config, inputs, dict(sample=sample, middle=middle[0]))


def image_inputs() -> dict:
  return dict(x=torch.randn(2, 3, 8, 16), timesteps=torch.tensor([3, 721]), y=torch.tensor([1, 4]))


def text_inputs(config: dict) -> dict:
  return dict(
    x=torch.randn(2, 4, 4, 8),
    timesteps=torch.tensor([3, 721]),
    context=torch.randn(2, 7, config["context_dim"]),
  )


def kl(config: dict) -> AutoencoderKL:
  return AutoencoderKL(config, {"target": "torch.nn.Identity"}, config["z_channels"])


def record_kl(config: dict, seed: int) -> dict:
  model = prepared(kl(config), seed)
  image = torch.randn(2, 3, 24, 16)
  with torch.no_grad():
    mean, logvar = model.encode(image).parameters.chunk(2, dim=1)
    outputs = dict(mean=mean, logvar=logvar, decoded=model.decode(mean))
  return case(model, config, dict(image=image), outputs)


def record_names(file: str, model: torch.nn.Module, parameters: int) -> None:
  """Of a model on the meta device, whose size is known."""
  assert sum(x.numel() for x in model.parameters()) == parameters, file
  write_names(file, {k: x.shape for k, x in model.state_dict().items()})


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  # One drawing of weights and of inputs: the order in the attention is all that is different.
  inputs = image_inputs()
  save("unet_adm", {n: record_unet(ADM, c, inputs, 0) for n, c in IMAGES.items()}, PACKAGES)
  texts = {n: record_unet(UNetModel, c, text_inputs(c), 1) for n, c in TEXT.items()}
  save("unet_original", texts, PACKAGES)
  save("autoencoder_original", {n: record_kl(c, 2) for n, c in KL.items()}, PACKAGES)
  with torch.device("meta"):
    record_names("sd_unet_original", UNetModel(**STABLE_DIFFUSION), 859_520_964)
    record_names("sd_vae_original", kl(STABLE_DIFFUSION_KL), 83_653_863)
    record_names("adm_imagenet64", create_model(**IMAGENET_64), 295_904_454)
    record_names("adm_imagenet256", create_model(**IMAGENET_256), 553_838_086)
