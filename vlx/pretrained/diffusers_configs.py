"""What diffusers' configs say of a UNet, an autoencoder, a scheduler."""

from collections.abc import Mapping
from typing import Any

from vlx.core.errors import UserError
from vlx.inference.diffusion import Process
from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.models.layers.unet import UNet
from vlx.pretrained import fields

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
  attends = fields.flag(config, "add_attention", True)
  if attends:
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
    middle_attention=attends,
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


# Of UNet2DConditionModel, whatever its blocks.
_CONDITION = dict(
  center_input_sample=False,
  only_cross_attention=False,
  mid_block_scale_factor=1,
  act_fn="silu",
  encoder_hid_dim=None,
  encoder_hid_dim_type=None,
  num_attention_heads=None,
  dual_cross_attention=False,
  addition_embed_type=None,
  num_class_embeds=None,
  resnet_skip_time_act=False,
  resnet_out_scale_factor=1.0,
  time_embedding_type="positional",
  time_embedding_dim=None,
  time_embedding_act_fn=None,
  timestep_post_act=None,
  time_cond_proj_dim=None,
  conv_in_kernel=3,
  conv_out_kernel=3,
  cross_attention_norm=None,
)


def unet_2d_condition(config: Mapping) -> UNet:
  """The network of `UNet2DConditionModel` in the form of latent diffusion and Stable Diffusion 1 and 2."""
  width, multipliers = _levels(config)
  for name, wanted in dict(
    _CONDITION,
    mid_block_type="UNetMidBlock2DCrossAttn",
    class_embed_type=None,
    resnet_time_scale_shift="default",
    attention_type="default",
    mid_block_only_cross_attention=None,
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


def unclip_decoder(config: Mapping) -> UNet:
  """The network of `UNet2DConditionModel` in the form of unCLIP's decoder: attention to text and image in one."""
  width, multipliers = _levels(config)
  for name, wanted in dict(
    _CONDITION,
    mid_block_type="UNetMidBlock2DSimpleCrossAttn",
    class_embed_type="identity",
    resnet_time_scale_shift="scale_shift",
    downsample_padding=1,
  ).items():
    fields.must_be(config, name, wanted)
  simple = lambda up: {
    f"Resnet{'Up' if up else 'Down'}sampleBlock2D": False,
    f"SimpleCrossAttn{'Up' if up else 'Down'}Block2D": True,
  }
  network = UNet(
    channels=fields.positive_int(config, "out_channels", 6),
    width=width,
    multipliers=multipliers,
    num_blocks=fields.layers(config, "layers_per_block", 2),
    attention_at=_attention_at(config, multipliers, simple(False), simple(True)),
    head_dim=fields.positive_int(config, "attention_head_dim", 8),
    joint_attention=True,
    scale_shift=True,
    residual_resampling=True,
    cos_first=fields.flag(config, "flip_sin_to_cos", True),
    frequency_shift=fields.one_of_numbers(config, "freq_shift", {0: 0, 1: 1}, 0),
    groups=fields.positive_int(config, "norm_num_groups", 32),
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
