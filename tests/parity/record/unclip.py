"""Records the networks of unCLIP as diffusers has them for Karlo, at tiny widths, and their names at full size.

pip install torch==2.13.0 transformers==5.23.0 diffusers==0.42.1 safetensors accelerate
python tests/parity/record/unclip.py
"""

import math
import shutil
import tempfile

import torch
from common import PARITY, half_file, halved, public_file, redrawn, save, telling
from diffusers import (
  PriorTransformer,
  UnCLIPPipeline,
  UnCLIPScheduler,
  UNet2DConditionModel,
  UNet2DModel,
)
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from diffusers.schedulers import scheduling_unclip
from pipeline import LENGTH, rounded, tokenizer
from transformers import CLIPTextConfig, CLIPTextModelWithProjection
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


FOLDER = PARITY / "karlo"
PROMPTS = ["a cab", "abba"]
SIDE = 12  # not one with as many places as the context, which diffusers' masks would be confused by


def waves(shape, index: int, *_, **__) -> torch.Tensor:
  """Noise that another program can draw too: channels last, by the number of the draw."""
  batch, *sides = shape
  channels_last = (*sides[1:], sides[0]) if len(sides) == 3 else (1, 1, *sides)
  size = torch.tensor(channels_last).prod()
  wave = 1.4 * torch.sin(0.7 * index + 1.3 * torch.arange(size)).reshape(channels_last)
  wave = wave.permute(2, 0, 1) if len(sides) == 3 else wave[0, 0]
  return wave.expand(shape).clone()


def pipeline() -> UnCLIPPipeline:
  with tempfile.TemporaryDirectory() as folder:
    words = tokenizer(folder)
  text = CLIPTextConfig(
    vocab_size=len(words), hidden_size=8, intermediate_size=16, num_hidden_layers=1,
    num_attention_heads=2, max_position_embeddings=LENGTH, projection_dim=8,
    bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id,
    pad_token_id=words.pad_token_id,
  )  # fmt: skip
  prior = PriorTransformer(
    **{**PRIOR, "embedding_dim": 8, "num_embeddings": LENGTH, "num_layers": 1}
  )
  proj = dict(clip_embeddings_dim=8, time_embed_dim=32, cross_attention_dim=12)
  schedule = dict(beta_schedule="squaredcos_cap_v2", num_train_timesteps=1000)
  made = dict(
    prior=rounded(prior, 0),
    decoder=rounded(UNet2DConditionModel(**{**DECODER, "sample_size": SIDE}), 1),
    text_encoder=rounded(CLIPTextModelWithProjection(text), 2),
    text_proj=rounded(UnCLIPTextProjModel(**proj), 3),
    super_res_first=rounded(UNet2DModel(**{**UPSAMPLER, "sample_size": 2 * SIDE}), 4),
    super_res_last=rounded(UNet2DModel(**{**UPSAMPLER, "sample_size": 2 * SIDE}), 5),
  )
  with torch.no_grad():
    deviation = made["prior"].clip_std
    deviation.copy_((deviation.abs() + 0.5).half().float())
  return UnCLIPPipeline(
    **made,
    tokenizer=words,
    prior_scheduler=UnCLIPScheduler(
      **schedule, clip_sample_range=5.0, prediction_type="sample", variance_type="fixed_small_log"
    ),
    decoder_scheduler=UnCLIPScheduler(**schedule, variance_type="learned_range"),
    super_res_scheduler=UnCLIPScheduler(**schedule, variance_type="fixed_small_log"),
  )


def unclip_betas() -> list[float]:
  """The cosine schedule's."""
  share = lambda t: math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2
  return [min(1 - share(t + 1) / share(t), 0.999) for t in range(1000)]


def record_pipeline(pipe: UnCLIPPipeline) -> dict:
  drawn = {"count": 0}

  def next_wave(shape, **_):
    drawn["count"] += 1
    return waves(shape, drawn["count"])

  scheduling_unclip.randn_tensor = next_wave
  # Each stage counts its draws anew.
  for scheduler in (pipe.prior_scheduler, pipe.decoder_scheduler, pipe.super_res_scheduler):
    begin = scheduler.set_timesteps

    def set_timesteps(*args, begin=begin, **how):
      drawn["count"] = 0
      return begin(*args, **how)

    scheduler.set_timesteps = set_timesteps
    # In f32 it takes what is 4.9e-9, α_999 by α_500, for 0.
    scheduler.betas = torch.tensor(unclip_betas(), dtype=torch.float64)
    scheduler.alphas = 1 - scheduler.betas
    scheduler.alphas_cumprod = scheduler.alphas.cumprod(0)
    step = scheduler.step

    def in_f32(*args, step=step, **how):
      found = step(*args, **how)
      found.prev_sample = found.prev_sample.float()
      return found

    scheduler.step = in_f32
  found = {}
  keep = pipe.prior.post_process_latents

  def post_process_latents(z):
    found["embeddings"] = keep(z)
    return found["embeddings"]

  pipe.prior.post_process_latents = post_process_latents
  images = pipe(
    PROMPTS, prior_num_inference_steps=3, decoder_num_inference_steps=3,
    super_res_num_inference_steps=3, prior_guidance_scale=2.0, decoder_guidance_scale=3.0,
    prior_latents=waves((2, 8), 0), decoder_latents=waves((2, 3, SIDE, SIDE), 0),
    super_res_latents=waves((2, 3, 2 * SIDE, 2 * SIDE), 0), output_type="np",
  ).images  # fmt: skip
  return dict(config=dict(prompts=PROMPTS), outputs=dict(images=torch.from_numpy(images), **found))


if __name__ == "__main__":
  torch.manual_seed(0)
  torch.set_num_threads(1)
  cases = {
    "prior": record_prior(0),
    "decoder": record_decoder(1),
    "upsampler": record_upsampler(3),
    "pipeline": record_pipeline(pipeline()),
  }
  save("unclip", cases, ("diffusers",))
  shutil.rmtree(FOLDER, ignore_errors=True)
  pipe = pipeline()  # without what recording put into it
  pipe.to(torch.float16).save_pretrained(FOLDER)
  for file in FOLDER.rglob("*.safetensors"):
    file.chmod(0o644)
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
