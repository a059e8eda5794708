"""Records diffusers' `UNet2DModel` and `UNet2DConditionModel` at tiny widths, and names of files at
full size.

    pip install torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 diffusers==0.42.1 \
                safetensors accelerate
    python tests/parity/record/unet.py
"""

import torch
from common import half_file, halved, public_file, redrawn, save, save_names, telling
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor

# google/ddpm-cifar10-32: one head as wide as the layer, and a zero row and column at the end before
# each downsampling.
DDPM = dict(
  act_fn="silu",
  attention_head_dim=None,
  center_input_sample=False,
  downsample_padding=0,
  flip_sin_to_cos=False,
  freq_shift=1,
  layers_per_block=2,
  mid_block_scale_factor=1,
  norm_eps=1e-6,
)
# Of openai/guided-diffusion's ImageNet models, as consistency models have it in diffusers.
ADM = dict(
  attention_head_dim=16,
  attn_norm_num_groups=8,  # without it the attention in the middle has no norm
  block_out_channels=(16, 32),
  down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
  downsample_type="resnet",
  layers_per_block=2,
  norm_num_groups=8,
  num_class_embeds=5,
  out_channels=6,
  resnet_time_scale_shift="scale_shift",
  up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
  upsample_type="resnet",
)
IMAGES = {
  "ddpm": dict(
    DDPM,
    block_out_channels=(16, 16, 32),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    norm_num_groups=8,
    sample_size=16,
    up_block_types=("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  ),
  "adm": dict(ADM, sample_size=16),
}
# `attention_head_dim` counts the heads.
TEXT = {
  "sd": dict(
    attention_head_dim=4,
    block_out_channels=(16, 32, 32),
    cross_attention_dim=24,
    down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=16,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
  ),
  # CompVis/ldm-text2im-large-256: of the same form, with a text as wide as the widest layer.
  "ldm": dict(
    attention_head_dim=2,
    block_out_channels=(16, 16),
    cross_attention_dim=32,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=8,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
  ),
  # stable-diffusion-2: heads of one width, not of one number.
  "sd2": dict(
    attention_head_dim=[2, 4],
    block_out_channels=(16, 32),
    cross_attention_dim=20,
    down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=12,
    up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    use_linear_projection=True,
  ),
}
WORDS = 7


def prepared(model: torch.nn.Module, seed: int) -> torch.nn.Module:
  model = halved(telling(redrawn(model, seed)))
  for module in model.modules():
    if isinstance(module, Attention):
      module.set_processor(AttnProcessor())  # the products written out
  return model


def public_config(model) -> dict:
  return {k: v for k, v in model.config.items() if not k.startswith("_")}


def record(model: torch.nn.Module, inputs: dict) -> dict:
  """Of a prepared model: the answer, and what comes out of its middle."""
  middle = []
  model.mid_block.register_forward_hook(lambda _, __, out: middle.append(out))
  with torch.no_grad():
    sample = model(**inputs).sample
  last = lambda x: x.permute(0, 2, 3, 1) if x.ndim == 4 else x
  return dict(
    config=public_config(model),
    weights=half_file(public_file(model)),
    inputs={k: last(x if x.is_floating_point() else x.int()) for k, x in inputs.items()},
    outputs=dict(sample=last(sample), middle=last(middle[0])),
  )


def image_inputs(config: dict) -> dict:
  size = config["sample_size"]
  inputs = dict(sample=torch.randn(2, 3, size, size), timestep=torch.tensor([3, 721]))
  if "num_class_embeds" in config:
    inputs["class_labels"] = torch.tensor([1, 4])
  return inputs


def text_inputs(config: dict) -> dict:
  size = config["sample_size"]
  return dict(
    sample=torch.randn(2, 4, size // 2, size),
    timestep=torch.tensor([3, 721]),
    encoder_hidden_states=torch.randn(2, WORDS, config["cross_attention_dim"]),
  )


def record_names(file: str, model: torch.nn.Module, parameters: int) -> None:
  """Of a model on the meta device, whose size is known."""
  assert sum(x.numel() for x in model.parameters()) == parameters, file
  save_names(file, model)


def cifar10() -> UNet2DModel:
  return UNet2DModel(
    **DDPM,
    block_out_channels=(128, 256, 256, 256),
    down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    sample_size=32,
    up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  images = {
    name: record(prepared(UNet2DModel(**config), seed), image_inputs(config))
    for seed, (name, config) in enumerate(IMAGES.items())
  }
  save("unet", images, ("diffusers",))
  texts = {
    name: record(prepared(UNet2DConditionModel(**config), seed), text_inputs(config))
    for seed, (name, config) in enumerate(TEXT.items(), len(images))
  }
  save("unet_text", texts, ("diffusers",))
  with torch.device("meta"):
    record_names("ddpm_cifar10", cifar10(), 35_746_307)
    record_names("sd_unet", UNet2DConditionModel(cross_attention_dim=768), 859_520_964)
    record_names("ldm_unet", UNet2DConditionModel(cross_attention_dim=1280), 872_300_484)
