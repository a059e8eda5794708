"""What diffusers' configs say: UNets, autoencoders, schedulers, and the pipelines that a `model_index.json` makes of them."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from vlx.core.errors import UserError
from vlx.core.files import read_json
from vlx.data.tokenizers.trained import load_clip
from vlx.inference.diffusion import Process
from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.models.generation.ddpm import DDPM
from vlx.models.generation.latent_diffusion import LatentDiffusion
from vlx.models.layers.unet import UNet
from vlx.pretrained import clip, fields, unet
from vlx.pretrained.tables import CheckpointMap

# Kinds of blocks: whether they have attention, or change the size by residual blocks.
_DOWN = {
  "DownBlock2D": (False, False),
  "ResnetDownsampleBlock2D": (False, True),
  "AttnDownBlock2D": (True, None),
  "CrossAttnDownBlock2D": (True, False),
}
_UP = {name.replace("Down", "Up").replace("down", "up"): kind for name, kind in _DOWN.items()}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_SCHEDULES = {"linear": "linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "cosine"}


def _levels(config: Mapping) -> tuple[int, tuple[int, ...]]:
  """(width, multipliers)."""
  widths = config.get("block_out_channels")
  if not isinstance(widths, list) or not 1 <= len(widths) <= fields.MAX_STAGES:
    raise UserError(
      f"config.json: block_out_channels is {fields.shown(widths)}, not a list of widths"
    )
  widths = [fields.checked_int("block_out_channels", w) for w in widths]
  if any(w % widths[0] for w in widths):
    raise UserError(
      f"config.json: block_out_channels are {widths}; vlx takes multiples of the first"
    )
  return widths[0], tuple(w // widths[0] for w in widths)


def _kinds(config: Mapping, name: str, known: Mapping[str, Any], count: int) -> list:
  kinds = config.get(name)
  if (
    not isinstance(kinds, list) or len(kinds) != count or not all(isinstance(k, str) for k in kinds)
  ):
    raise UserError(f"config.json: {name} is {fields.shown(kinds)}, not a list of {count} blocks")
  for kind in kinds:
    if kind not in known:
      raise UserError(f"config.json: {name} has {fields.shown(kind)}; vlx knows {', '.join(known)}")
  return [known[kind] for kind in kinds]


def _attention_at(
  config: Mapping, multipliers: tuple[int, ...], down: Mapping, up: Mapping
) -> tuple[int, ...]:
  """Factors of size at which blocks on both ways have attention."""
  downs = _kinds(config, "down_block_types", down, len(multipliers))
  ups = _kinds(config, "up_block_types", up, len(multipliers))
  if downs != ups[::-1]:
    raise UserError("config.json: up_block_types are not the mirror image of down_block_types")
  return tuple(2**i for i, attends in enumerate(downs) if attends)


def unet_2d(config: Mapping) -> UNet:
  """The network of `UNet2DModel`: DDPM's form and ADM's."""
  width, multipliers = _levels(config)
  for name, wanted in dict(
    center_input_sample=False,
    time_embedding_type="positional",
    time_embedding_dim=None,
    mid_block_type="UNetMidBlock2D",
    mid_block_scale_factor=1,
    act_fn="silu",
    add_attention=True,
    class_embed_type=None,
  ).items():
    fields.must_be(config, name, wanted)
  resampling = fields.one_of(config, "downsample_type", {"conv": False, "resnet": True}, "conv")
  fields.must_be(config, "upsample_type", "resnet" if resampling else "conv")
  kinds = {
    k: attends
    for k, (attends, residual) in _DOWN.items()
    if residual in (resampling, None) and "Cross" not in k
  }
  ups = {
    k: attends
    for k, (attends, residual) in _UP.items()
    if residual in (resampling, None) and "Cross" not in k
  }
  groups = fields.positive_int(config, "norm_num_groups", 32)
  scale_shift = fields.one_of(
    config, "resnet_time_scale_shift", {"default": False, "scale_shift": True}, "default"
  )
  fields.must_be(config, "attn_norm_num_groups", groups if scale_shift else None)
  head_dim = (
    0
    if config.get("attention_head_dim", 8) is None
    else fields.positive_int(config, "attention_head_dim", 8)
  )
  network = UNet(
    channels=fields.positive_int(config, "out_channels", 3),
    width=width,
    multipliers=multipliers,
    num_blocks=fields.layers(config, "layers_per_block", 2),
    attention_at=_attention_at(config, multipliers, kinds, ups),
    head_dim=head_dim,
    scale_shift=scale_shift,
    residual_resampling=resampling,
    symmetric_padding=fields.one_of_numbers(config, "downsample_padding", {0: False, 1: True}, 1),
    cos_first=fields.flag(config, "flip_sin_to_cos", True),
    frequency_shift=fields.one_of_numbers(config, "freq_shift", {0: 0, 1: 1}, 0),
    num_classes=0
    if config.get("num_class_embeds") is None
    else fields.positive_int(config, "num_class_embeds"),
    groups=groups,
    epsilon=fields.epsilon(config, "norm_eps", 1e-5),
  )
  return _checked(network)


def unet_2d_condition(config: Mapping) -> UNet:
  """The network of `UNet2DConditionModel` in the form of latent diffusion and Stable Diffusion 1 and 2."""
  width, multipliers = _levels(config)
  for name, wanted in dict(
    center_input_sample=False,
    mid_block_type="UNetMidBlock2DCrossAttn",
    only_cross_attention=False,
    mid_block_scale_factor=1,
    act_fn="silu",
    encoder_hid_dim=None,
    encoder_hid_dim_type=None,
    num_attention_heads=None,
    dual_cross_attention=False,
    class_embed_type=None,
    addition_embed_type=None,
    num_class_embeds=None,
    resnet_time_scale_shift="default",
    resnet_skip_time_act=False,
    resnet_out_scale_factor=1.0,
    time_embedding_type="positional",
    time_embedding_dim=None,
    time_embedding_act_fn=None,
    timestep_post_act=None,
    time_cond_proj_dim=None,
    conv_in_kernel=3,
    conv_out_kernel=3,
    attention_type="default",
    mid_block_only_cross_attention=None,
    cross_attention_norm=None,
  ).items():
    fields.must_be(config, name, wanted)
  # Called the width of a head, it is the number of heads.
  heads = config.get("attention_head_dim", 8)
  heads = heads if isinstance(heads, list) else [heads] * len(multipliers)
  heads = [fields.checked_int("attention_head_dim", n) for n in heads]
  if len(heads) != len(multipliers):
    raise UserError(
      f"config.json: attention_head_dim has {len(heads)} numbers for {len(multipliers)} levels"
    )
  of_head = [width * m // n for m, n in zip(multipliers, heads)]
  if len(set(heads)) > 1 and len(set(of_head)) > 1:
    raise UserError(
      "config.json: attention_head_dim: vlx takes as many heads everywhere, or heads of one width"
    )
  depth = config.get("transformer_layers_per_block", 1)
  groups = fields.positive_int(config, "norm_num_groups", 32)
  select = lambda kinds: {k: a for k, (a, residual) in kinds.items() if residual is False}
  network = UNet(
    channels=fields.positive_int(config, "out_channels", 4),
    width=width,
    multipliers=multipliers,
    num_blocks=fields.layers(config, "layers_per_block", 2),
    attention_at=_attention_at(config, multipliers, select(_DOWN), select(_UP)),
    num_heads=heads[0],
    head_dim=of_head[0] if len(set(heads)) > 1 else 0,
    transformer_depth=fields.checked_int("transformer_layers_per_block", depth, fields.MAX_LAYERS),
    symmetric_padding=fields.one_of_numbers(config, "downsample_padding", {0: False, 1: True}, 1),
    cos_first=fields.flag(config, "flip_sin_to_cos", True),
    frequency_shift=fields.one_of_numbers(config, "freq_shift", {0: 0, 1: 1}, 0),
    groups=groups,
    epsilon=fields.epsilon(config, "norm_eps", 1e-5),
  )
  return _checked(network)


def _checked(network: UNet) -> UNet:
  for multiplier in network.multipliers:
    width, per = network.width * multiplier, network.head_dim or network.num_heads
    fields.divides("block_out_channels", width, "norm_num_groups", network.groups)
    fields.divides("block_out_channels", width, "attention_head_dim", per)
  return network


def autoencoder(config: Mapping) -> KLAutoencoder | VQAutoencoder:
  """`AutoencoderKL` or `VQModel`, by their `_class_name`; images of `sample_size`."""
  kl = fields.one_of(config, "_class_name", {"AutoencoderKL": True, "VQModel": False})
  width, multipliers = _levels(config)
  fields.must_be(config, "act_fn", "silu")
  fields.must_be(config, "mid_block_add_attention", True)
  for name, wanted in (
    dict(
      use_quant_conv=True,
      use_post_quant_conv=True,
      shift_factor=None,
      latents_mean=None,
      latents_std=None,
    )
    if kl
    else dict(norm_type="group", lookup_from_codebook=False)
  ).items():
    fields.must_be(config, name, wanted)
  downs = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
  ups = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}
  channels = fields.positive_int(config, "latent_channels", 4 if kl else 3)
  shared = dict(
    image_size=fields.positive_int(config, "sample_size", 32, most=fields.MAX_SIDE),
    width=width,
    multipliers=multipliers,
    num_blocks=fields.layers(config, "layers_per_block", 1),
    attention_at=_attention_at(config, multipliers, downs, ups),
    groups=fields.positive_int(config, "norm_num_groups", 32),
  )
  for multiplier in multipliers:
    fields.divides("block_out_channels", width * multiplier, "norm_num_groups", shared["groups"])
  factor = 2 ** (len(multipliers) - 1)
  fields.divides("sample_size", shared["image_size"], "the factor of size", factor)
  if kl:
    return KLAutoencoder(latent_channels=channels, **shared)
  code_dim = (
    channels if config.get("vq_embed_dim") is None else fields.positive_int(config, "vq_embed_dim")
  )
  return VQAutoencoder(
    latent_channels=code_dim,
    inner_channels=channels,
    num_codes=fields.positive_int(config, "num_vq_embeddings", 256),
    **shared,
  )


def process(config: Mapping) -> Process:
  """What a `scheduler_config.json` says of the process; how to sample is the sampler's matter."""
  fields.must_be(config, "trained_betas", None)
  learned = config.get("variance_type") == "learned_range"
  return Process(
    schedule=fields.one_of(config, "beta_schedule", _SCHEDULES, "linear"),
    timesteps=fields.positive_int(config, "num_train_timesteps", 1000, most=1_000_000),
    beta_start=fields.positive(config, "beta_start", 1e-4, most=1.0),
    beta_end=fields.positive(config, "beta_end", 0.02, most=1.0),
    zero_terminal_snr=fields.flag(config, "rescale_betas_zero_snr", False),
    prediction=fields.one_of(config, "prediction_type", _PREDICTIONS, "epsilon"),
    learned_variance=learned,
    ends_clean=fields.flag(config, "set_alpha_to_one", True),
  )


_METHODS = {
  "DDPMScheduler": "ancestral",
  "DDIMScheduler": "ddim",
  "PNDMScheduler": "dpm_solver",  # Stable Diffusion's first, of order four; this one needs fewer steps
  "DPMSolverMultistepScheduler": "dpm_solver",
  "EulerDiscreteScheduler": "euler",
}
_SPACINGS = {name: name for name in ("trailing", "leading", "linspace")}


def sampler(config: Mapping) -> dict[str, Any]:
  """The fields of a `vlx.inference.samplers.Sampler` that a `scheduler_config.json` sets."""
  method = fields.one_of(config, "_class_name", _METHODS)
  default = "linspace" if method in ("dpm_solver", "euler") else "leading"
  offset = config.get("steps_offset", 0)
  if type(offset) is not int or not 0 <= offset < 1000:
    raise UserError(
      f"config.json: steps_offset is {fields.shown(offset)}, not a small whole number"
    )
  clips = method in ("ancestral", "ddim") and fields.flag(config, "clip_sample", True)
  return dict(
    method=method,
    spacing=fields.one_of(config, "timestep_spacing", _SPACINGS, default),
    offset=offset,
    threshold="static" if clips else "none",
    variance=1.0 if config.get("variance_type") == "fixed_large" else 0.0,
  )


# Of a folder's part, the first that is there.
WEIGHTS = (
  "diffusion_pytorch_model.safetensors.index.json",
  "diffusion_pytorch_model.safetensors",
  "diffusion_pytorch_model.fp16.safetensors",
  "diffusion_pytorch_model.bin",
  "model.safetensors.index.json",
  "model.safetensors",
  "model.fp16.safetensors",
  "pytorch_model.bin",
)
INDEX = "model_index.json"
# transformers writes a text tower by itself without this name since its version 5.
_TEXT_ALIAS = (r"^text_encoder\.(?!text_model\.)", "text_encoder.text_model.")
# Pipelines by the parts that vlx reads of them.
UNCONDITIONAL = ("DDPMPipeline", "DDIMPipeline")
STABLE_DIFFUSION = "StableDiffusionPipeline"


def is_part(config: Mapping) -> bool:
  """Whether a `config.json` is of a network of diffusers."""
  return "_diffusers_version" in config or config.get("_class_name") in (
    "UNet2DModel",
    "UNet2DConditionModel",
    "AutoencoderKL",
    "VQModel",
  )


def of_part(config: Mapping) -> CheckpointMap:
  """A folder of one network.

  Raises:
    UserError: for one that is of no use without the others of its pipeline, or that vlx does not know.
  """
  match config.get("_class_name"):
    case "UNet2DModel":
      return _ddpm(config, {}, "")
    case "AutoencoderKL" | "VQModel":
      system = autoencoder(config)
      return CheckpointMap(system, unet.autoencoder_rows(system), unet.DIFFUSERS_ALIASES)
    case "UNet2DConditionModel":
      raise UserError(
        "this is the UNet of a pipeline: name the pipeline's folder, which has a model_index.json"
      )
    case other:
      raise UserError(f"config.json: _class_name is {fields.shown(other)}, which vlx does not know")


def parts_of(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Name → folder of the networks of a pipeline that hold weights for vlx.

  Raises:
    UserError: for a pipeline that vlx does not know, or one that lacks a part.
  """
  kind = read_json(folder / INDEX).get("_class_name")
  if kind in UNCONDITIONAL:
    names = ("unet",)
  elif kind == STABLE_DIFFUSION:
    names = ("unet", "vae", "text_encoder")
  else:
    known = ", ".join((*UNCONDITIONAL, STABLE_DIFFUSION))
    raise UserError(f"{folder / INDEX}: the pipeline is {fields.shown(kind)}; vlx knows {known}")
  # The first of them have their one network beside the index.
  found = {name: folder / name if (folder / name).is_dir() else folder for name in names}
  for name, place in found.items():
    if not (place / "config.json").is_file():
      raise UserError(f"{folder} has no {name}/config.json")
  return found


def weights_of(folder: pathlib.Path) -> pathlib.Path:
  """The file of a network's weights."""
  for name in WEIGHTS:
    if (folder / name).is_file():
      return folder / name
  raise UserError(f"{folder} holds none of {', '.join(WEIGHTS)}")


def of_pipeline(folder: pathlib.Path, parts: Mapping[str, pathlib.Path]) -> CheckpointMap:
  """The system of a pipeline, whose tensors' names have their part before them."""
  configs = {name: read_json(place / "config.json") for name, place in parts.items()}
  scheduler = folder / "scheduler" / "scheduler_config.json"
  scheduler = scheduler if scheduler.is_file() else folder / "scheduler_config.json"
  how = read_json(scheduler) if scheduler.is_file() else {}
  if "vae" not in parts:
    return _ddpm(configs["unet"], how, "unet.")
  return _stable_diffusion(configs, how, empty_text(folder / "tokenizer", configs["text_encoder"]))


def _ddpm(config: Mapping, scheduler: Mapping, public: str) -> CheckpointMap:
  network = unet_2d(config)
  side = fields.positive_int(config, "sample_size", 32, most=fields.MAX_SIDE)
  with told("config.json"):
    system = DDPM(
      unet=network,
      image_size=side,
      process=process(scheduler),
      num_classes=network.num_classes,
      condition_dropout=0.0,
    )
  return CheckpointMap(system, unet.diffusers_rows(network, public=public), unet.DIFFUSERS_ALIASES)


def _stable_diffusion(
  configs: Mapping[str, Mapping], scheduler: Mapping, empty: tuple[int, ...]
) -> CheckpointMap:
  network, vae, text = (
    unet_2d_condition(configs["unet"]),
    autoencoder(configs["vae"]),
    clip.text_encoder(configs["text_encoder"]),
  )
  side = fields.positive_int(configs["unet"], "sample_size", 64, most=fields.MAX_SIDE)
  fields.must_be(configs["unet"], "cross_attention_dim", text.text.width)
  fields.must_be(configs["unet"], "in_channels", vae.latent_channels)
  vae = dataclasses.replace(vae, image_size=side * vae.factor)
  with told("config.json"):
    system = LatentDiffusion(
      unet=network,
      image_size=side * vae.factor,
      process=process(scheduler),
      text_encoder=text,
      text_length=text.text_length,
      empty_text=empty,
      autoencoder=vae,
      latent_scale=fields.positive(configs["vae"], "scaling_factor", 0.18215),
    )
  linear = fields.flag(configs["unet"], "use_linear_projection", False)
  rows = [
    *unet.diffusers_rows(network, linear=linear, public="unet."),
    *unet.autoencoder_rows(vae, ours="autoencoder/", public="vae."),
    *clip.text_rows(
      text.text.num_heads, ours="text_encoder/text", public="text_encoder.text_model"
    ),
  ]
  return CheckpointMap(system, rows, (*unet.DIFFUSERS_ALIASES, _TEXT_ALIAS))


def empty_text(folder: pathlib.Path, text_config: Mapping) -> tuple[int, ...]:
  """The ids of the empty prompt: start and end, and the padding that the tokenizer's files name."""
  tokenizer = load_clip(folder)
  length = fields.length(text_config, "max_position_embeddings", 77)
  files = [folder / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
  told = [read_json(file).get("pad_token") for file in files if file.is_file()]
  token = next((t for t in told if t), None)
  token = token.get("content") if isinstance(token, Mapping) else token
  pad = tokenizer.end_id if token is None else tokenizer.id_of(token)
  if pad is None:
    raise UserError(f"{folder}: the padding {fields.shown(token)} is no token of the vocabulary")
  return (tokenizer.start_id, tokenizer.end_id, *[pad] * (length - 2))


@contextlib.contextmanager
def told(file: str):
  """A model that makes no sense is the file's fault."""
  try:
    yield
  except ValueError as e:
    raise UserError(f"{file}: {e}") from e


def preprocess(system, config: Mapping | None = None) -> str:
  """The whole image, cut to a square: these folders say nothing of it."""
  del config
  return f"decode|resize_small({system.image_size})|central_crop({system.image_size})|normalize"
