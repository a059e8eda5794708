"""diffusers' folders: a network by its `config.json`, a pipeline by its `model_index.json`."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping

from vlx.core.errors import UserError
from vlx.core.files import read_json
from vlx.data.tokenizers.trained import load_clip
from vlx.models.generation.ddpm import DDPM
from vlx.models.generation.latent_diffusion import LatentDiffusion
from vlx.pretrained import clip, diffusers_configs, fields, unet
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


def _stable_diffusion(
  configs: Mapping[str, Mapping], scheduler: Mapping, empty: tuple[int, ...]
) -> CheckpointMap:
  network, vae, text = (
    diffusers_configs.unet_2d_condition(configs["unet"]),
    diffusers_configs.autoencoder(configs["vae"]),
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
      process=diffusers_configs.process(scheduler),
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
