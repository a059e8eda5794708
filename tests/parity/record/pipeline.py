"""Records a `StableDiffusionPipeline` at tiny widths: its folder, in half precision, and images of two prompts.

    pip install torch==2.13.0 torchvision==0.28.0 transformers==5.23.0 diffusers==0.42.1 \
                safetensors accelerate
    python tests/parity/record/pipeline.py
"""

import json
import shutil
import string
import tempfile

import torch
from common import PARITY, redrawn, save
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

FOLDER = PARITY / "stable_diffusion"
LENGTH = 12
PROMPTS = ["a cab", "abba"]
UNET = dict(
  sample_size=8,
  down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
  up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
  block_out_channels=(8, 16),
  layers_per_block=1,
  norm_num_groups=4,
  cross_attention_dim=8,
  attention_head_dim=2,
)
VAE = dict(
  sample_size=16,
  down_block_types=("DownEncoderBlock2D",) * 2,
  up_block_types=("UpDecoderBlock2D",) * 2,
  block_out_channels=(8, 8),
  layers_per_block=1,
  norm_num_groups=4,
  latent_channels=4,
  scaling_factor=0.5,
)
SCHEDULER = dict(
  beta_schedule="scaled_linear",
  beta_start=0.00085,
  beta_end=0.012,
  clip_sample=False,
  set_alpha_to_one=False,
  steps_offset=1,
)


def tokenizer(folder: str) -> CLIPTokenizer:
  letters = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "ab", "ab</w>"]
  words = {word: i for i, word in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
  for name, text in (
    ("vocab.json", json.dumps(words)),
    ("merges.txt", "#version: 0.2\na b\na b</w>\n"),
  ):
    with open(f"{folder}/{name}", "w") as f:
      f.write(text)
  made = CLIPTokenizer.from_pretrained(folder)
  made.model_max_length = LENGTH
  return made


def rounded(model: torch.nn.Module, seed: int) -> torch.nn.Module:
  model = redrawn(model, seed)
  for x in model.state_dict().values():
    if x.is_floating_point():
      x.copy_(x.half().float())
  return model


def pipeline() -> StableDiffusionPipeline:
  with tempfile.TemporaryDirectory() as folder:
    words = tokenizer(folder)
  text = CLIPTextConfig(
    vocab_size=len(words),
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    max_position_embeddings=LENGTH,
    bos_token_id=words.bos_token_id,
    eos_token_id=words.eos_token_id,
    pad_token_id=words.pad_token_id,
  )
  return StableDiffusionPipeline(
    vae=rounded(AutoencoderKL(**VAE), 0),
    text_encoder=rounded(CLIPTextModel(text), 1),
    tokenizer=words,
    unet=rounded(UNet2DConditionModel(**UNET), 2),
    scheduler=DDIMScheduler(**SCHEDULER),
    safety_checker=None,
    feature_extractor=None,
    requires_safety_checker=False,
  )


if __name__ == "__main__":
  pipe = pipeline()
  latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
  how = dict(num_inference_steps=4, guidance_scale=3.0, latents=latents)
  with torch.no_grad():
    images = pipe(PROMPTS, output_type="pt", **how).images
    told, empty = pipe.encode_prompt(PROMPTS, "cpu", 1, True)
  outputs = dict(images=images.permute(0, 2, 3, 1), told=told, empty=empty)
  inputs = dict(latents=latents.permute(0, 2, 3, 1))
  config = dict(prompts=PROMPTS, num_steps=4, guidance_scale=3.0)
  save(
    "pipeline",
    {"stable_diffusion": dict(config=config, inputs=inputs, outputs=outputs)},
    ("diffusers", "transformers"),
  )
  shutil.rmtree(FOLDER, ignore_errors=True)
  pipe.to(torch.float16).save_pretrained(FOLDER)
  for file in FOLDER.rglob("*.safetensors"):
    file.chmod(0o644)
