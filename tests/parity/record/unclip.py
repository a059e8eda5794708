"""Records the networks of unCLIP as diffusers has them for Karlo, at tiny widths, and their names at full size.

pip install torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 safetensors accelerate
python tests/parity/record/unclip.py
"""

import torch
from common import half_file, public_file, save
from diffusers import PriorTransformer
from unet import prepared, public_config, record_names

PRIOR = dict(
  num_attention_heads=2,
  attention_head_dim=6,
  num_layers=3,
  embedding_dim=10,
  num_embeddings=7,
  additional_embeddings=4,
)


def record_prior(seed: int) -> dict:
  model = prepared(PriorTransformer(**PRIOR), seed)
  with torch.no_grad():
    for name in ("clip_mean", "clip_std"):
      getattr(model, name).copy_(torch.rand(1, PRIOR["embedding_dim"]).half() + 0.5)
  inputs = dict(
    hidden_states=torch.randn(3, 10),
    timestep=torch.tensor([3, 721, 0]),
    proj_embedding=torch.randn(3, 10),
    encoder_hidden_states=torch.randn(3, 7, 10),
    attention_mask=torch.arange(7)[None] < torch.tensor([[7], [3], [1]]),
  )
  with torch.no_grad():
    sample = model(**inputs).predicted_image_embedding
    embedding = model.post_process_latents(sample)
  return dict(
    config=public_config(model),
    weights=half_file(public_file(model)),
    inputs=inputs,
    outputs=dict(sample=sample, embedding=embedding),
  )


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  save("unclip", {"prior": record_prior(0)}, ("diffusers",))
  with torch.device("meta"):
    record_names("karlo_prior", PriorTransformer(), 1_022_030_080)
