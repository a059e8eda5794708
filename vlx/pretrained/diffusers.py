"""diffusers' folders: a network by its `config.json`, a pipeline by its `model_index.json`."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping

from vlx.core.errors import UserError
from vlx.core.files import read_json
from vlx.models.generation.ddpm import DDPM
from vlx.models.generation.latent_diffusion import LatentDiffusion
from vlx.pretrained import clip, diffusers_configs, fields, karlo, ldm_bert, unet
from vlx.pretrained.tables import CheckpointMap

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
_TEXT_ALIAS = (r"^text_encoder\.(?!text_model\.|text_projection\.)", "text_encoder.text_model.")
# Pipelines by the parts that vlx reads of them; of latent diffusion the network, the autoencoder, the text encoder.
PIPELINES = {
  "DDPMPipeline": ("unet",),
  "DDIMPipeline": ("unet",),
  "LDMPipeline": ("unet", "vqvae"),
  "LDMTextToImagePipeline": ("unet", "vqvae", "bert"),
  "StableDiffusionPipeline": ("unet", "vae", "text_encoder"),
  "UnCLIPPipeline": (
    "prior",
    "decoder",
    "text_encoder",
    "text_proj",
    "super_res_first",
    "super_res_last",
  ),
}


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
      system = diffusers_configs.autoencoder(config)
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
  if kind not in PIPELINES:
    raise UserError(
      f"{folder / INDEX}: the pipeline is {fields.shown(kind)}; vlx knows {', '.join(PIPELINES)}"
    )
  # The first of them have their one network beside the index.
  found = {name: folder / name if (folder / name).is_dir() else folder for name in PIPELINES[kind]}
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
  if "prior" in parts:
    return _unclip(folder, configs)
  scheduler = folder / "scheduler" / "scheduler_config.json"
  scheduler = scheduler if scheduler.is_file() else folder / "scheduler_config.json"
  how = read_json(scheduler) if scheduler.is_file() else {}
  if len(parts) == 1:
    return _ddpm(configs["unet"], how, "unet.")
  return _latent_diffusion(configs, how, folder / "tokenizer")


def _unclip(folder: pathlib.Path, configs: Mapping[str, Mapping]) -> CheckpointMap:
  schedulers = {
    name: read_json(folder / f"{name}_scheduler" / "scheduler_config.json")
    for name in ("prior", "decoder", "super_res")
  }
  start, end, *_ = clip.empty_text(folder / "tokenizer", configs["text_encoder"])
  with told("config.json"):
    found = karlo.pipeline(configs, schedulers, (start, end))
  return found._replace(aliases=(*unet.DIFFUSERS_ALIASES, _TEXT_ALIAS))


def _ddpm(config: Mapping, scheduler: Mapping, public: str) -> CheckpointMap:
  network = diffusers_configs.unet_2d(config)
  side = fields.positive_int(config, "sample_size", 32, most=fields.MAX_SIDE)
  with told("config.json"):
    system = DDPM(
      unet=network,
      image_size=side,
      process=diffusers_configs.process(scheduler),
      num_classes=network.num_classes,
      condition_dropout=0.0,
    )
  return CheckpointMap(system, unet.diffusers_rows(network, public=public), unet.DIFFUSERS_ALIASES)


def _latent_diffusion(
  configs: Mapping[str, Mapping], scheduler: Mapping, tokenizer: pathlib.Path
) -> CheckpointMap:
  """Of a network, an autoencoder, and, where there is one, a text encoder: `configs` in this order."""
  (_, config), (vae_name, vae_config), *texts = configs.items()
  network = (diffusers_configs.unet_2d_condition if texts else diffusers_configs.unet_2d)(config)
  vae = diffusers_configs.autoencoder(vae_config)
  side = fields.positive_int(config, "sample_size", 64, most=fields.MAX_SIDE)
  fields.must_be(config, "in_channels", vae.latent_channels)
  vae = dataclasses.replace(vae, image_size=side * vae.factor)
  text, rows = {}, []
  if texts:
    ((name, text_config),) = texts
    reader, public = (ldm_bert, "bert.") if name == "bert" else (clip, f"{name}.text_model")
    encoder = reader.text_encoder(text_config)
    fields.must_be(config, "cross_attention_dim", encoder.text.width)
    empty = reader.empty_text(tokenizer, text_config)
    text = dict(text_encoder=encoder, text_length=encoder.text_length, empty_text=empty)
    rows = reader.text_rows(encoder.text.num_heads, ours="text_encoder/text", public=public)
  with told("config.json"):
    system = LatentDiffusion(
      unet=network,
      image_size=side * vae.factor,
      process=diffusers_configs.process(scheduler),
      autoencoder=vae,
      latent_scale=fields.positive(vae_config, "scaling_factor", 0.18215),
      condition_dropout=0.1 if texts else 0.0,
      **text,
    )
  linear = fields.flag(config, "use_linear_projection", False)
  rows = [
    *unet.diffusers_rows(network, linear=linear, public="unet."),
    *unet.autoencoder_rows(vae, ours="autoencoder/", public=f"{vae_name}."),
    *rows,
  ]
  return CheckpointMap(system, rows, (*unet.DIFFUSERS_ALIASES, _TEXT_ALIAS))


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
