"""Records the networks of unCLIP as diffusers has them for Karlo, at tiny widths, and their names at full size.

pip install torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 safetensors accelerate
python tests/parity/record/unclip.py
"""

import torch
from common import half_file, halved, public_file, redrawn, save, telling
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
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


# kakaobrain/karlo-v1-alpha, at tiny widths.
DECODER = dict(
  act_fn="silu",
  attention_head_dim=4,
  block_out_channels=(8, 16),
  class_embed_type="identity",
  cross_attention_dim=12,
  down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
  in_channels=3,
  layers_per_block=1,
  mid_block_type="UNetMidBlock2DSimpleCrossAttn",
  norm_num_groups=4,
  only_cross_attention=False,
  out_channels=6,
  resnet_time_scale_shift="scale_shift",
  sample_size=8,
  up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
)
UPSAMPLER = dict(
  act_fn="silu",
  add_attention=False,
  block_out_channels=(8, 16),
  down_block_types=("ResnetDownsampleBlock2D",) * 2,
  downsample_type="resnet",
  in_channels=6,
  layers_per_block=1,
  norm_num_groups=4,
  out_channels=3,
  resnet_time_scale_shift="default",
  sample_size=8,
  up_block_types=("ResnetUpsampleBlock2D",) * 2,
  upsample_type="resnet",
)
PROJECTIONS = dict(clip_embeddings_dim=10, time_embed_dim=32, cross_attention_dim=12)
last = lambda x: x.permute(0, 2, 3, 1)


def record_decoder(seed: int) -> dict:
  """The network behind its projections, guided: first without the image's embedding, then with it."""
  projections = prepared(UnCLIPTextProjModel(**PROJECTIONS), seed)
  model = UNet2DConditionModel(**DECODER)
  model = halved(telling(redrawn(model, seed + 1)))
  image, text, tokens = torch.randn(2, 10), torch.randn(4, 10), torch.randn(4, 5, 10)
  mask = torch.arange(5)[None] < torch.tensor([[5], [2], [5], [3]])
  x, t = torch.randn(4, 3, 8, 8), torch.tensor([3, 721, 40, 999])
  with torch.no_grad():
    context, embedding = projections(
      image_embeddings=image,
      prompt_embeds=text,
      text_encoder_hidden_states=tokens,
      do_classifier_free_guidance=True,
    )
    sample = model(
      x,
      t,
      encoder_hidden_states=context,
      class_labels=embedding,
      attention_mask=torch.nn.functional.pad(mask, (4, 0), value=True),
    ).sample
  weights = {f"text_proj.{k}": v for k, v in half_file(public_file(projections)).items()}
  weights |= {f"decoder.{k}": v for k, v in half_file(public_file(model)).items()}
  return dict(
    config=dict(decoder=public_config(model), text_proj=public_config(projections)),
    weights=weights,
    inputs=dict(image=image, text=text, tokens=tokens, mask=mask, x=last(x), t=t.int()),
    outputs=dict(sample=last(sample), context=context, embedding=embedding),
  )


def record_upsampler(seed: int) -> dict:
  model = prepared(UNet2DModel(**UPSAMPLER), seed)
  x, t = torch.randn(2, 6, 8, 8), torch.tensor([3, 721])
  with torch.no_grad():
    sample = model(x, t).sample
  return dict(
    config=public_config(model),
    weights=half_file(public_file(model)),
    inputs=dict(x=last(x[:, :3]), low=last(x[:, 3:]), t=t.int()),
    outputs=dict(sample=last(sample)),
  )


def karlo(model, tiny: dict, **more):
  widths = dict(block_out_channels=(320, 640, 960, 1280), layers_per_block=3, norm_num_groups=32)
  ends = lambda blocks: (blocks[0], *(blocks[1],) * 3)
  kinds = dict(
    down_block_types=ends(tiny["down_block_types"]),
    up_block_types=ends(tiny["up_block_types"][::-1])[::-1],
  )
  return model(**{**tiny, **widths, **kinds, **more})


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  cases = {"prior": record_prior(0), "decoder": record_decoder(1), "upsampler": record_upsampler(3)}
  save("unclip", cases, ("diffusers",))
  with torch.device("meta"):
    record_names("karlo_prior", PriorTransformer(), 1_022_030_080)
    record_names(
      "karlo_text_proj",
      UnCLIPTextProjModel(clip_embeddings_dim=768, time_embed_dim=1280, cross_attention_dim=1536),
      7_878_400,
    )
    decoder = karlo(UNet2DConditionModel, DECODER, attention_head_dim=64, cross_attention_dim=1536)
    record_names("karlo_decoder", decoder, 885_439_686)
    record_names("karlo_upsampler", karlo(UNet2DModel, UPSAMPLER, sample_size=256), 691_579_523)
