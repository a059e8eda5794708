"""Records diffusers' `AutoencoderKL` and `VQModel` at tiny widths, and names of a file at full size.

    pip install torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 diffusers==0.42.1 \
                safetensors accelerate
    python tests/parity/record/autoencoder.py
"""

import torch
from common import half_file, public_file, save
from diffusers import AutoencoderKL, VQModel
from unet import prepared, public_config, record_names

THREE_LEVELS = dict(
  block_out_channels=(16, 16, 32),
  down_block_types=("DownEncoderBlock2D",) * 3,
  up_block_types=("UpDecoderBlock2D",) * 3,
)
# Attention in the lowest level, as of LDM's f = 16 and of VQ's f = 8.
ATTENTION = dict(
  block_out_channels=(16, 32),
  down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
  up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
)
# Stable Diffusion's form; LDM's at f = 16.
KL = {
  "kl": dict(THREE_LEVELS, latent_channels=4, layers_per_block=2, norm_num_groups=8),
  "kl16": dict(ATTENTION, latent_channels=6, layers_per_block=1, norm_num_groups=8),
}
VQ = {
  "vq": dict(
    THREE_LEVELS,
    block_out_channels=(16, 16, 16),
    latent_channels=3,
    layers_per_block=1,
    norm_num_groups=8,
    num_vq_embeddings=32,
    vq_embed_dim=4,
  )
}


def pictures() -> dict[str, torch.Tensor]:
  return dict(image=torch.randn(2, 3, 16, 16), tall=torch.randn(2, 3, 24, 16))


def channels_last(tensors: dict) -> dict:
  return {k: x.permute(0, 2, 3, 1) if x.ndim == 4 else x for k, x in tensors.items()}


def case(model, inputs: dict, outputs: dict) -> dict:
  return dict(
    config=public_config(model),
    weights=half_file(public_file(model)),
    inputs=channels_last(inputs),
    outputs=channels_last(outputs),
  )


def record_kl(config: dict, seed: int) -> dict:
  """Mean and log-variance as they are, before the latter is clipped, and what the mean decodes to."""
  model = prepared(AutoencoderKL(**config), seed)
  inputs, outputs = pictures(), {}
  with torch.no_grad():
    for name, image in inputs.items():
      moments = model.encode(image).latent_dist.parameters
      mean, logvar = moments.chunk(2, dim=1)
      outputs |= {
        f"{name}_mean": mean,
        f"{name}_logvar": logvar,
        f"{name}_decoded": model.decode(mean).sample,
      }
  return case(model, inputs, outputs)


def record_vq(config: dict, seed: int) -> dict:
  """What is encoded, the ids of the nearest codes, and what these codes decode to."""
  model = prepared(VQModel(**config), seed)
  inputs, outputs = pictures(), {}
  codes = model.quantize.embedding.weight
  with torch.no_grad():
    # The codes lie as the latents do.
    z = model.encode(inputs["image"]).latents.permute(0, 2, 3, 1).flatten(0, 2)
    codes.copy_((codes / 0.1 * z.std(0) + z.mean(0)).half().float())
    for name, image in inputs.items():
      z = model.encode(image).latents
      quantized, _, (_, _, ids) = model.quantize(z)
      b, d, h, w = z.shape
      near = torch.cdist(z.permute(0, 2, 3, 1).reshape(-1, d), codes).topk(2, largest=False).values
      assert (near[:, 1] - near[:, 0]).min() > 1e-3 * near[:, 0].max(), "a tie"
      outputs |= {
        f"{name}_latents": z,
        f"{name}_quantized": quantized,
        f"{name}_ids": ids.view(b, h, w).int(),
        f"{name}_decoded": model.decode(z).sample,
      }
  return case(model, inputs, outputs)


def stable_diffusion() -> AutoencoderKL:
  return AutoencoderKL(
    block_out_channels=(128, 256, 512, 512),
    down_block_types=("DownEncoderBlock2D",) * 4,
    latent_channels=4,
    layers_per_block=2,
    sample_size=512,
    up_block_types=("UpDecoderBlock2D",) * 4,
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  cases = {name: record_kl(config, seed) for seed, (name, config) in enumerate(KL.items())}
  cases |= {name: record_vq(config, seed) for seed, (name, config) in enumerate(VQ.items(), 2)}
  save("autoencoder", cases, ("diffusers",))
  with torch.device("meta"):
    record_names("sd_vae", stable_diffusion(), 83_653_863)
