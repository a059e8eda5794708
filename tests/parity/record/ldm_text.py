"""Records an `LDMTextToImagePipeline` at tiny widths (its folder and images of two prompts), and the text encoder as
CompVis' code has it, with its names at full size.

    pip install torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 safetensors accelerate einops==0.8.2
    git clone https://github.com/CompVis/latent-diffusion
    PYTHONPATH=latent-diffusion python tests/parity/record/ldm_text.py
"""

import shutil
import string
import tempfile

import torch
from common import PARITY, redrawn, save, write_names
from diffusers import AutoencoderKL, DDIMScheduler, LDMTextToImagePipeline, UNet2DConditionModel
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import (
  LDMBertConfig,
  LDMBertModel,
)
from ldm.modules.x_transformer import Encoder, TransformerWrapper
from pipeline import PROMPTS, SCHEDULER, UNET, VAE, rounded
from transformers import BertTokenizer

FOLDER = PARITY / "ldm_text"
LENGTH = 77  # the pipeline's code says so
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def tokenizer() -> BertTokenizer:
  letters = [*string.ascii_lowercase, *(f"##{c}" for c in string.ascii_lowercase)]
  with tempfile.TemporaryDirectory() as folder:
    with open(f"{folder}/vocab.txt", "w") as f:
      f.write("\n".join([*SPECIAL, *letters, "cab"]) + "\n")
    return BertTokenizer.from_pretrained(folder)


def text_encoder(words: int) -> LDMBertModel:
  config = LDMBertConfig(
    vocab_size=words,
    max_position_embeddings=LENGTH,
    encoder_layers=2,
    encoder_ffn_dim=16,
    encoder_attention_heads=2,
    head_dim=6,
    d_model=8,
  )
  return LDMBertModel(config)


def original() -> dict:
  """Of the authors' code, whose heads are 8 of width 64; the answer to ids of full length."""
  layers = Encoder(dim=16, depth=2)
  model = redrawn(TransformerWrapper(num_tokens=50, max_seq_len=12, attn_layers=layers), 5)
  ids = torch.randint(0, 50, (2, 12))
  with torch.no_grad():
    out = model(ids, return_embeddings=True)
  weights = {f"cond_stage_model.transformer.{k}": x for k, x in model.state_dict().items()}
  return dict(config={}, weights=weights, inputs=dict(text=ids.int()), outputs=dict(tokens=out))


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  words = tokenizer()
  pipe = LDMTextToImagePipeline(
    vqvae=rounded(AutoencoderKL(**VAE), 0),
    bert=rounded(text_encoder(len(words)), 1),
    tokenizer=words,
    unet=rounded(UNet2DConditionModel(**UNET), 2),
    scheduler=DDIMScheduler(**SCHEDULER),
  )
  latents = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(3))
  pipe.vae_scale_factor = 8  # that its code divides images' sides by, whatever the autoencoder's
  how = dict(num_inference_steps=4, guidance_scale=3.0, latents=latents, height=64, width=64)
  images = torch.from_numpy(pipe(PROMPTS, output_type="np", **how).images)
  with torch.no_grad():
    ids = words(PROMPTS, padding="max_length", max_length=LENGTH, return_tensors="pt").input_ids
    told = pipe.bert(ids)[0]
  case = dict(
    config=dict(prompts=PROMPTS, num_steps=4, guidance_scale=3.0),
    inputs=dict(latents=latents.permute(0, 2, 3, 1)),
    outputs=dict(images=images, told=told),
  )
  save("ldm_text", {"pipeline": case, "original": original()}, ("diffusers", "transformers"))
  shutil.rmtree(FOLDER, ignore_errors=True)
  pipe.to(torch.float16).save_pretrained(FOLDER)
  for file in FOLDER.rglob("*.safetensors"):
    file.chmod(0o644)
  with torch.device("meta"):
    layers = Encoder(dim=1280, depth=32)
    full = TransformerWrapper(num_tokens=30522, max_seq_len=77, attn_layers=layers)
  write_names("ldm_bert_original", {k: tuple(x.shape) for k, x in full.state_dict().items()})
