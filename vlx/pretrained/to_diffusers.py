"""Folders that diffusers opens: the networks of a system, their configs, a pipeline's index."""

from typing import Any, NamedTuple

from vlx.core.errors import UserError
from vlx.core.system import Variables
from vlx.inference.diffusion import Process
from vlx.models.contrastive.clip import CLIPTextEncoder, CLIPTextTower
from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.models.generation.ddpm import DDPM
from vlx.models.generation.latent_diffusion import LatentDiffusion
from vlx.models.generation.unclip import UnCLIP
from vlx.models.generation.unclip_decoder import UnCLIPDecoder
from vlx.models.generation.unclip_prior import DiffusionPrior
from vlx.models.generation.unclip_upsampler import UnCLIPUpsampler
from vlx.models.layers.unet import UNet
from vlx.pretrained import clip, fields, karlo, ldm_bert, unet
from vlx.pretrained.tables import Row

VERSION = "0.42.1"  # of diffusers, that these were tried with


class Network(NamedTuple):
  """One network of a folder."""

  config: dict[str, Any]
  rows: list[Row]


class Folder(NamedTuple):
  """What is to be written.

  Attributes:
    networks: name of their folder → network; of one that stands by itself "".
    configs: path → content of what has no weights.
  """

  networks: dict[str, Network]
  configs: dict[str, dict[str, Any]]


def folder(system: Any, variables: Variables) -> Folder:
  """The folder of a system.

  Raises:
    UserError: for a system, or fields of one, that diffusers has no place for.
  """
  match system:
    case KLAutoencoder() | VQAutoencoder():
      return Folder({"": Network(_autoencoder(system, 1.0), unet.autoencoder_rows(system))}, {})
    case DDPM(text_encoder=None):
      network = Network(_unet_2d(system), unet.diffusers_rows(system.unet))
      how = {"_class_name": "DDPMScheduler", **_scheduler(system.process), "clip_sample": True}
      if system.process.learned_variance:
        how["variance_type"] = "learned_range"
      index = _index("DDPMPipeline", unet="UNet2DModel", scheduler="DDPMScheduler")
      return Folder(
        {"unet": network}, {"model_index.json": index, "scheduler/scheduler_config.json": how}
      )
    case LatentDiffusion(text_encoder=CLIPTextEncoder(), autoencoder=KLAutoencoder()):
      return _text_to_image(system, variables)
    case UnCLIP(
      prior=DiffusionPrior(clip=CLIPTextTower()),
      decoder=UnCLIPDecoder(),
      first=UnCLIPUpsampler(separate_last=True),
      second=None,
    ):
      return _unclip(system)
  raise UserError(f"diffusers has no pipeline for this {type(system).__name__}")


def _text_to_image(system: LatentDiffusion, variables: Variables) -> Folder:
  """Of a causal text encoder a Stable Diffusion, of another one the text LDM."""
  text, vae = system.text_encoder.text, system.autoencoder
  if not system.empty_text:
    raise UserError(
      "diffusers' pipelines of texts need an empty_text, and attend to all tokens; this model masks padding"
    )
  scale = system.latent_scale or float(variables["state"]["latents"]["scale"])
  how = {
    "_class_name": "DDIMScheduler",
    **_scheduler(system.process),
    "clip_sample": False,
    "set_alpha_to_one": system.process.ends_clean,
    "steps_offset": 1,
  }
  parts = dict(unet="UNet2DConditionModel", scheduler="DDIMScheduler")
  ours = "text_encoder/text"
  if text.causal:
    fields.exportable("a Stable Diffusion", text, qkv_bias=True, head_dim=0, token_norm=0.0)
    index = _index("StableDiffusionPipeline", **parts, vae="AutoencoderKL")
    index |= {
      "text_encoder": ["transformers", "CLIPTextModel"],
      "tokenizer": ["transformers", "CLIPTokenizer"],
      "safety_checker": [None, None],
      "feature_extractor": [None, None],
      "requires_safety_checker": False,
    }
    told = Network(
      clip.text_config(text, system.empty_text), clip.text_rows(text.num_heads, ours=ours)
    )
  else:
    index = _index("LDMTextToImagePipeline", **parts, vqvae="AutoencoderKL")
    index |= {
      "bert": ["latent_diffusion", "LDMBertModel"],
      "tokenizer": ["transformers", "BertTokenizer"],
    }
    told = Network(ldm_bert.text_config(text), ldm_bert.text_rows(text.num_heads, ours=ours))
  networks = {
    "unet": Network(_unet_2d_condition(system), unet.diffusers_rows(system.unet)),
    "vae" if text.causal else "vqvae": Network(
      _autoencoder(vae, scale), unet.autoencoder_rows(vae, ours="autoencoder/")
    ),
    "text_encoder" if text.causal else "bert": told,
  }
  return Folder(networks, {"model_index.json": index, "scheduler/scheduler_config.json": how})


def _unclip(system: UnCLIP) -> Folder:
  """Karlo's form."""
  prior, decoder, upsampler = system.prior, system.decoder, system.first
  what, tower = "a Karlo", decoder.clip
  fields.exportable(what, prior, scale=0.0)
  fields.exportable(what, decoder, normalised=False)
  fields.exportable(what, decoder.unet, joint_attention=True, symmetric_padding=True)
  network = prior.network
  start, end = decoder.no_text
  configs = {
    "prior": dict(
      _class_name="PriorTransformer",
      num_attention_heads=network.num_heads,
      attention_head_dim=network.width // network.num_heads,
      num_layers=network.depth,
      embedding_dim=network.dim,
      num_embeddings=network.text_length,
      additional_embeddings=4,
    ),
    "decoder": dict(
      _class_name="UNet2DConditionModel",
      **_unet(decoder.unet, decoder.image_size),
      in_channels=3,
      **_mirrored(
        decoder.unet,
        "ResnetDownsampleBlock2D",
        "SimpleCrossAttnDownBlock2D",
        "ResnetUpsampleBlock2D",
        "SimpleCrossAttnUpBlock2D",
      ),
      mid_block_type="UNetMidBlock2DSimpleCrossAttn",
      only_cross_attention=False,
      class_embed_type="identity",
      cross_attention_dim=decoder.context_width,
      attention_head_dim=decoder.unet.head_dim,
      resnet_time_scale_shift="scale_shift",
    ),
    "text_encoder": clip.text_config(tower.text, (start, end, end))
    | dict(architectures=["CLIPTextModelWithProjection"], projection_dim=tower.embed_dim),
    "text_proj": dict(
      _class_name="UnCLIPTextProjModel",
      clip_embeddings_dim=tower.embed_dim,
      clip_extra_context_tokens=decoder.extra_tokens,
      cross_attention_dim=decoder.context_width,
      time_embed_dim=4 * decoder.unet.width,
    ),
    **dict.fromkeys(("super_res_first", "super_res_last"), _upsampler(upsampler)),
  }
  rows = karlo.pipeline_rows(system, ("decoder",))
  of_part = lambda part: [
    row._replace(public=row.public.removeprefix(f"{part}."))
    for row in rows
    if row.public.startswith(f"{part}.")
  ]
  networks = {part: Network(config, of_part(part)) for part, config in configs.items()}
  scheduler = lambda process, variance, bound: {
    "_class_name": "UnCLIPScheduler",
    **_scheduler(process),
    "variance_type": variance,
    "clip_sample_range": bound,
  }
  schedulers = {
    "prior": scheduler(prior.process, "fixed_small_log", 5.0),
    "decoder": scheduler(decoder.process, "learned_range", 1.0),
    "super_res": scheduler(upsampler.process, "fixed_small_log", 1.0),
  }
  index = _index(
    "UnCLIPPipeline",
    **{part: config["_class_name"] for part, config in configs.items() if "_class_name" in config},
    **{f"{name}_scheduler": "UnCLIPScheduler" for name in schedulers},
  )
  index |= {
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
  }
  files = {f"{name}_scheduler/scheduler_config.json": how for name, how in schedulers.items()}
  return Folder(networks, {"model_index.json": index, **files})


def _upsampler(system: UnCLIPUpsampler) -> dict[str, Any]:
  network = system.unet
  fields.exportable("a Karlo", network, residual_resampling=True, middle_attention=False)
  fields.exportable("a Karlo", network, attention_at=())
  blocks = ("ResnetDownsampleBlock2D",) * 2 + ("ResnetUpsampleBlock2D",) * 2
  return dict(
    _class_name="UNet2DModel",
    **_unet(network, system.image_size),
    in_channels=6,
    **_mirrored(network, *blocks),
    add_attention=False,
    downsample_type="resnet",
    upsample_type="resnet",
    resnet_time_scale_shift="scale_shift" if network.scale_shift else "default",
  )


def _index(pipeline: str, **parts: str) -> dict[str, Any]:
  named = {name: ["diffusers", kind] for name, kind in parts.items()}
  return {"_class_name": pipeline, "_diffusers_version": VERSION, **named}


def _scheduler(process: Process) -> dict[str, Any]:
  names = {"linear": "linear", "scaled_linear": "scaled_linear", "cosine": "squaredcos_cap_v2"}
  return dict(
    _diffusers_version=VERSION,
    beta_schedule=names[process.schedule],
    num_train_timesteps=process.timesteps,
    beta_start=process.beta_start,
    beta_end=process.beta_end,
    rescale_betas_zero_snr=process.zero_terminal_snr,
    prediction_type={"eps": "epsilon", "x0": "sample", "v": "v_prediction"}[process.prediction],
  )


def _unet(network: UNet, sample_size: int) -> dict[str, Any]:
  return dict(
    _diffusers_version=VERSION,
    sample_size=sample_size,
    out_channels=network.channels,
    block_out_channels=[network.width * m for m in network.multipliers],
    layers_per_block=network.num_blocks,
    downsample_padding=int(network.symmetric_padding),
    flip_sin_to_cos=network.cos_first,
    freq_shift=network.frequency_shift,
    norm_num_groups=network.groups,
    norm_eps=network.epsilon,
    act_fn="silu",
    dropout=0.0,
  )


def _mirrored(
  network: Any, plain: str, attends: str, plain_up: str, attends_up: str
) -> dict[str, list[str]]:
  at = [2**i in network.attention_at for i in range(len(network.multipliers))]
  return dict(
    down_block_types=[attends if a else plain for a in at],
    up_block_types=[attends_up if a else plain_up for a in reversed(at)],
  )


def _unet_2d(system: DDPM) -> dict[str, Any]:
  network = system.unet
  resampling = "Resnet{}sampleBlock2D" if network.residual_resampling else "{}Block2D"
  kind = "resnet" if network.residual_resampling else "conv"
  if not network.head_dim and network.num_heads != 1:
    raise UserError("diffusers' UNet2DModel has heads of one width: unet.head_dim, or one head")
  return dict(
    _class_name="UNet2DModel",
    **_unet(network, system.image_size),
    in_channels=3,
    **_mirrored(
      network,
      resampling.format("Down"),
      "AttnDownBlock2D",
      resampling.format("Up"),
      "AttnUpBlock2D",
    ),
    downsample_type=kind,
    upsample_type=kind,
    attention_head_dim=network.head_dim or None,
    attn_norm_num_groups=network.groups if network.scale_shift else None,
    resnet_time_scale_shift="scale_shift" if network.scale_shift else "default",
    num_class_embeds=network.num_classes or None,
  )


def _unet_2d_condition(system: LatentDiffusion) -> dict[str, Any]:
  network, text = system.unet, system.text_encoder.text
  fields.exportable(
    "a Stable Diffusion", network, scale_shift=False, residual_resampling=False, num_classes=0
  )
  side = system.image_size // system.autoencoder.factor
  blocks = ("DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D")
  widths = [network.width * m for m in network.multipliers]
  return dict(
    _class_name="UNet2DConditionModel",
    **_unet(network, side),
    in_channels=system.autoencoder.latent_channels,
    **_mirrored(network, *blocks),
    cross_attention_dim=text.width,
    transformer_layers_per_block=network.transformer_depth,
    attention_head_dim=[w // network.head_dim for w in widths]
    if network.head_dim
    else network.num_heads,
    use_linear_projection=False,
  )


def _autoencoder(system: KLAutoencoder | VQAutoencoder, scale: float) -> dict[str, Any]:
  inner = system.inner_channels or system.latent_channels
  own = dict(_class_name="AutoencoderKL")
  if isinstance(system, VQAutoencoder):
    own = dict(
      _class_name="VQModel", num_vq_embeddings=system.num_codes, vq_embed_dim=system.latent_channels
    )
  elif inner != system.latent_channels:
    raise UserError("diffusers' AutoencoderKL has as many inner_channels as latent_channels")
  blocks = (
    "DownEncoderBlock2D",
    "AttnDownEncoderBlock2D",
    "UpDecoderBlock2D",
    "AttnUpDecoderBlock2D",
  )
  return dict(
    **own,
    _diffusers_version=VERSION,
    in_channels=3,
    out_channels=3,
    **_mirrored(system, *blocks),
    block_out_channels=[system.width * m for m in system.multipliers],
    layers_per_block=system.num_blocks,
    latent_channels=inner,
    norm_num_groups=system.groups,
    sample_size=system.image_size,
    scaling_factor=scale,
    act_fn="silu",
  )
