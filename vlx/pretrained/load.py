"""From any checkpoint on disk to a system and its variables, tokenizer and preprocessing.

A folder of Hugging Face's (`config.json` beside safetensors or torch's files, in one or many), of
open_clip's, of Meta's (`params.json` beside `consolidated.*.pth`), of OpenAI's dVAE (`encoder.pkl`
and `decoder.pkl`), of Google's BERT (`bert_config.json` beside TensorFlow's `bert_model.ckpt.index`),
or of vlx (a run, or what `vlx.convert` wrote); a single file of safetensors, torch, numpy,
TensorFlow or llama.cpp, those of latent diffusion's and ADM's authors among them; or the name of a repository on Hugging Face's hub.
"""

import importlib
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import flax.errors
import jax
from jax.sharding import Mesh

from vlx.core import checkpoint
from vlx.core import config as configs
from vlx.core import partition as partitions
from vlx.core import system as systems
from vlx.core.checkpoint import differences
from vlx.core.errors import UserError
from vlx.core.files import read_json
from vlx.core.system import System, Variables, flatten, names, variable_shapes
from vlx.data import tokenizers
from vlx.data.tokenizers import public as public_tokenizers
from vlx.data.tokenizers.trained import load_clip
from vlx.pretrained import compvis, diffusers, ldm_bert, prefixes, tables
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.formats.npz import open_npz
from vlx.pretrained.formats.safetensors import open_safetensors
from vlx.pretrained.formats.shards import open_index, open_joined, open_parts
from vlx.pretrained.formats.tf_bundle import open_tf_bundle
from vlx.pretrained.formats.torch_files import open_torch
from vlx.pretrained.hub import download
from vlx.pretrained.tables import CheckpointMap

# Families by `model_type` of a config.json, and diffusers, each the module `vlx.pretrained.NAME`; and
# what their systems are.
FAMILIES = {
  "bert": (
    "vlx.models.pretraining.bert.MaskedLanguageModel",
    "vlx.models.pretraining.bert.BERTEncoder",
  ),
  "clip": ("vlx.models.contrastive.clip.CLIP",),
  "diffusers": (
    "vlx.models.generation.autoencoder.KLAutoencoder",
    "vlx.models.generation.autoencoder.VQAutoencoder",
    "vlx.models.generation.ddpm.DDPM",
    "vlx.models.generation.latent_diffusion.LatentDiffusion",
    "vlx.models.generation.unclip.UnCLIP",
  ),
  "llama": ("vlx.models.language.llama.LanguageModel", "vlx.models.language.llama.LLaMAEncoder"),
  "vit": ("vlx.models.vision.vit.ViT", "vlx.models.vision.vit.ViTEncoder"),
}
MODEL_TYPES = [name for name in FAMILIES if name != "diffusers"]
BELOW = ("encoder", "network")  # parameters that arctic-captions' and LPIPS's files are without
DVAE_HALVES = ("encoder", "decoder")  # of OpenAI's, files of their own
# Those whose files also come bare, and are known by their names and shapes.
BARE = ("vgg", "resnet", "googlenet", "vit", "clip")

OPENERS: dict[str, Callable[[pathlib.Path], TensorFile]] = {
  ".safetensors": open_safetensors,
  ".npz": open_npz,
  **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), open_torch),
}
# What a folder may have, the first that is there.
WEIGHTS = (
  "model.safetensors.index.json",
  "model.safetensors",
  "pytorch_model.bin.index.json",
  "pytorch_model.bin",
  "open_clip_model.safetensors",
  "open_clip_pytorch_model.bin",
)
OPEN_CLIP = "open_clip_config.json"
GOOGLE_BERT = "bert_config.json"
TF_INDEX = ".index"  # TensorFlow users call a checkpoint by its name without it
CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class Pretrained(NamedTuple):
  system: System
  variables: Variables
  tokenizer: Any  # a `vlx.data.tokenizers.Tokenizer`; None where there is none
  image_transform: (
    str  # ops that make an encoded image what the system takes; "" for language models
  )


class Checkpoint(NamedTuple):
  """A public checkpoint, or a model of vlx's own, of which no tensor is read yet."""

  system: System
  # of its variables, by their names "params/…" and "state/…"
  shapes: Mapping[str, jax.ShapeDtypeStruct]
  # Name → array for some of them, each from its file straight to the sharding and the dtype that is
  # asked for.
  read: Callable[[Mapping[str, jax.ShapeDtypeStruct]], dict[str, jax.Array]]
  tokenizer: Callable[[], Any]
  image_transform: str
  absent: str = ""  # what it lacks to be a model: `shapes` are then not all of the system's


class _Found(NamedTuple):
  """A checkpoint before its tensors are read."""

  family: str
  layout: CheckpointMap
  file: TensorFile
  absent: str = ""


def open_checkpoint(path_or_name: str | pathlib.Path) -> Checkpoint:
  """A public checkpoint, or a folder of vlx's own: a run's, or one that `vlx.convert` wrote.

  Args:
    path_or_name: a folder, a file, or the name of a repository on the hub
      ("hub:openai/clip-vit-base-patch32", or without "hub:").

  Raises:
    UserError: where there is no such thing, where it is damaged, of a family or format that vlx
      does not know, or more than data.
  """
  path = locate(path_or_name)
  if is_vlx(path):
    return _open_vlx(path)
  family, layout, file, absent = _find(path)
  shapes = _shapes_of(path, layout.system)
  if absent:  # what stands below what the file holds
    shapes = {"params": {k: x for k, x in shapes["params"].items() if k not in BELOW}, "state": {}}

  def read(wanted):
    return tables.read(
      layout.rows,
      shapes,
      file.shapes,
      file.fetch,
      aliases=layout.aliases,
      copies=layout.copies,
      wanted=wanted,
      place=lambda name, array: jax.make_array_from_callback(
        array.shape, wanted[name].sharding, array.__getitem__
      ),
    )

  def tokenizer():
    return (
      public_tokenizers.from_gguf(file.metadata)
      if path.suffix == ".gguf"
      else _tokenizer(path, family)
    )

  image_transform = _preprocess(path, family, layout.system)
  return Checkpoint(layout.system, flatten(shapes), read, tokenizer, image_transform, absent)


def load(
  path_or_name: str | pathlib.Path,
  *,
  mesh: Mesh | None = None,
  partition: partitions.Rules = ((".*", ()),),
) -> Pretrained:
  """Opens a checkpoint as `open_checkpoint` does, and reads its variables.

  Each tensor goes from its file to where it belongs; beside the variables the host holds only what
  is being read.

  Args:
    path_or_name: see `open_checkpoint`.
    mesh: of the devices that the variables go to; the first device alone where None.
    partition: rules from names of parameters to axes of the mesh, as in a config; by default each
      device holds all of them.

  Raises:
    UserError: as `open_checkpoint`; with a line for each tensor that does not fit.
  """
  found = open_checkpoint(path_or_name)
  if found.absent:
    raise UserError(f"{path_or_name} {found.absent}")
  shapes = _shapes_of(path_or_name, found.system)
  if mesh is None:
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: one, shapes)
  else:
    shardings = {
      "params": partitions.shardings(partition, shapes["params"], mesh),
      "state": jax.tree.map(lambda _: partitions.replicated(mesh), shapes["state"]),
    }
  described = lambda tree: {n: str(list(x.shape)) for n, x in tree.items()}
  if lines := differences(
    described(found.shapes), described(flatten(shapes)), "saved", "in the model of its config"
  ):
    raise UserError(f"{path_or_name} does not hold what its config says: {'; '.join(lines)}")
  # In the types that are stored: what is frozen may be in half precision.
  wanted = {
    name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=flatten(shardings)[name])
    for name, x in found.shapes.items()
  }
  arrays = found.read(wanted)
  variables = jax.tree.map(arrays.__getitem__, names(shapes))
  return Pretrained(found.system, variables, found.tokenizer(), found.image_transform)


def locate(path_or_name: str | pathlib.Path) -> pathlib.Path:
  """The folder or file; of a repository on the hub, where its copy lies.

  Raises:
    UserError: where there is none.
  """
  name = str(path_or_name)
  path = pathlib.Path(name).expanduser()
  try:
    if path.exists():
      return path
    if (index := path.with_name(path.name + TF_INDEX)).is_file():
      return index
  except OSError as e:
    raise UserError(f"cannot read {name}: {e.strerror}") from e
  # A mistyped path is no repository of somebody called "runs".
  if not name.startswith("hub:") and len(path.parts) == 2 and path.parent.is_dir():
    raise UserError(f"there is no file or folder {name}; to ask the hub for it, name hub:{name}")
  return download(name.removeprefix("hub:"))


def module(family: str) -> ModuleType:
  """The one that knows a family's files."""
  return importlib.import_module(f"vlx.pretrained.{family}")


def family_of(system: str) -> str | None:
  """The family that a system's public files are of, by the import path of its class."""
  return next((name for name, paths in FAMILIES.items() if system in paths), None)


def is_vlx(path: pathlib.Path) -> bool:
  """Whether a folder is a run's, or one that `vlx.convert` wrote."""
  return (path / "config.json").is_file() and bool(
    {"system", "schema"} & read_json(path / "config.json").keys()
  )


def _shapes_of(path: str | pathlib.Path, system: System) -> Variables:
  """`variable_shapes` of a system whose sizes come from somebody's files."""
  try:
    return variable_shapes(system)
  except (ArithmeticError, LookupError, TypeError, ValueError, flax.errors.FlaxError) as e:
    reason = (str(e).strip().splitlines() or [type(e).__name__])[0]
    raise UserError(f"{path} describes a model that cannot be built: {reason}") from e


def _find(path: pathlib.Path) -> _Found:
  if not path.is_dir():
    return _of_file(path)
  if (path / "params.json").is_file():
    return _of_meta(path)
  if (path / diffusers.INDEX).is_file():
    parts = diffusers.parts_of(path)
    files = {name: _open(diffusers.weights_of(place)) for name, place in parts.items()}
    return _Found("diffusers", diffusers.of_pipeline(path, parts), open_parts(files))
  halves = {half: path / f"{half}.pkl" for half in DVAE_HALVES}
  if all(file.is_file() for file in halves.values()):
    return _of_dvae(path, halves)
  weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
  config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
  if diffusers.is_part(config):
    return _Found("diffusers", diffusers.of_part(config), _open(diffusers.weights_of(path)))
  if weights is None and (path / GOOGLE_BERT).is_file():
    return _of_google_bert(path)
  if weights is None:
    files = sorted(f for f in path.iterdir() if f.suffix in (*OPENERS, ".gguf"))
    if len(files) > 1 and all(file.suffix == ".gguf" for file in files):
      from vlx.pretrained.formats.gguf import first_part

      files = [part] if (part := first_part(files)) else files
    if len(files) != 1:
      raise UserError(
        f"{path} holds {'no' if not files else 'many'} files of weights, and none that is called"
        f" {', '.join(WEIGHTS)}; name one of them"
      )
    (weights,) = files
  if config.get("model_type") is None and (path / OPEN_CLIP).is_file():
    told = read_json(path / OPEN_CLIP)
    layout_of = lambda shapes: ("clip", module("clip").from_open_clip(told, shapes))
    return _fitting(weights, _open(weights), layout_of)
  if config.get("model_type") is None:
    return _of_file(weights)
  if not isinstance(config["model_type"], str) or config["model_type"] not in MODEL_TYPES:
    raise UserError(
      f"{path / 'config.json'}: the model type is {config['model_type']!r}; vlx knows {', '.join(MODEL_TYPES)}"
    )
  family = config["model_type"]
  return _fitting(
    weights,
    _open(weights),
    lambda shapes: (family, module(family).from_hugging_face(config, shapes)),
  )


def _open(path: pathlib.Path) -> TensorFile:
  if path.name.endswith(".index.json"):
    return open_index(path, _open)
  if path.suffix not in OPENERS:
    raise UserError(f"{path}: unknown format; vlx reads {', '.join((*OPENERS, '.gguf'))}")
  return OPENERS[path.suffix](path)


def _of_file(path: pathlib.Path) -> _Found:
  """A file that has nothing beside it to say what it is, or is one of many."""
  if path.suffix == TF_INDEX:
    return _of_google_bert(path)
  if path.suffix == ".gguf":
    from vlx.pretrained.formats.gguf import open_gguf

    file = open_gguf(path)
    return _Found("llama", module("llama").from_gguf(file), file)
  file = _open(path)
  arctic = module("arctic")
  if arctic.is_arctic(file.shapes):
    options = arctic.read_options(path)
    layout = arctic.layout_of(options, file.shapes)
    return _Found("arctic", layout, arctic.adapted(file, options), arctic.ABSENT)
  lpips = module("lpips")
  if (layout := lpips.from_shapes(file.shapes)) is not None:
    return _Found("lpips", layout, file, lpips.ABSENT)
  for candidate in prefixes.unwrapped(file):
    if (adapted := compvis.adapted(candidate)) is not None:
      return _Found("diffusers", compvis.layout_of(adapted.shapes), adapted)
  return _fitting(path, file, _by_names)


def _fitting(path: pathlib.Path, file: TensorFile, layout_of: Callable) -> _Found:
  """A file under the names that its family's table has (`prefixes.fitting`)."""
  if (found := prefixes.fitting(file, layout_of)) is None:
    some = ", ".join(sorted(file.shapes)[:3])
    raise UserError(f"{path} is of no family that vlx knows by its names ({some}, …)")
  return _Found(*found)


def _by_names(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, CheckpointMap] | None:
  for family in BARE:
    if (layout := module(family).from_shapes(shapes)) is not None:
      return family, layout
  return None


def _of_meta(folder: pathlib.Path) -> _Found:
  files = sorted(folder.glob("consolidated.*.pth"))
  if not files:
    raise UserError(f"{folder} has a params.json and no consolidated.*.pth beside it")
  llama = module("llama")
  layout = llama.from_meta(read_json(folder / "params.json"))
  return _Found(
    "llama",
    layout,
    open_joined([prefixes.bare(open_torch(file)) for file in files], llama.META_SHARD_AXES),
  )


def _of_google_bert(path: pathlib.Path) -> _Found:
  """Google's BERT by its folder, or by the index of one of several checkpoints in it."""
  folder = path if path.is_dir() else path.parent
  indexes = sorted(path.glob(f"*{TF_INDEX}")) if path.is_dir() else [path]
  if len(indexes) != 1:
    count = f"{len(indexes)} checkpoints" if indexes else "no checkpoint"
    raise UserError(f"{folder} holds {count} of TensorFlow's; name NAME{TF_INDEX} of one")
  bert, file = module("bert"), open_tf_bundle(indexes[0])
  file = file._replace(shapes={n: x for n, x in file.shapes.items() if not bert.of_training(n)})
  return _Found("bert", bert.from_google(read_json(folder / GOOGLE_BERT), file.shapes), file)


def _of_dvae(folder: pathlib.Path, halves: dict[str, pathlib.Path]) -> _Found:
  file = open_parts({half: prefixes.bare(open_torch(path)) for half, path in halves.items()})
  layout = module("dvae").from_shapes(file.shapes)
  if layout is None:
    raise UserError(f"{folder}: encoder.pkl and decoder.pkl are not those of OpenAI's dVAE")
  return _Found("dvae", layout, file)


def _tokenizer(path: pathlib.Path, family: str) -> Any:
  """The tokenizer of the files beside the weights; CLIP's text is mended by rules of its own first."""
  if path.suffix == TF_INDEX:
    return public_tokenizers.load(path.parent)
  if family == "diffusers":
    folder = (path if path.is_dir() else path.parent) / "tokenizer"
    if not folder.is_dir():
      return None
    return public_tokenizers.load(folder) if ldm_bert.has_words(folder) else load_clip(folder)
  if family != "clip":
    return public_tokenizers.load(path) if path.is_dir() else None
  folder = path if path.is_dir() else path.parent
  if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
    return load_clip(folder)
  return load_clip(folder / CLIP_VOCABULARY) if (folder / CLIP_VOCABULARY).is_file() else None


def _preprocess(path: pathlib.Path, family: str, system: System) -> str:
  folder = path if path.is_dir() else path.parent
  file, open_clip = folder / "preprocessor_config.json", folder / OPEN_CLIP
  if family == "clip" and open_clip.is_file() and not file.is_file():
    return module(family).open_clip_preprocess(system, read_json(open_clip))
  return module(family).preprocess(system, read_json(file) if file.is_file() else None)


def _open_vlx(folder: pathlib.Path) -> Checkpoint:
  config = configs.read(folder).resolved
  system = configs.build_system(config)
  stored = checkpoint.RunVariables(folder, tuple(systems.parts(system)))

  def tokenizer():
    if (folder / "tokenizer.json").is_file() and config.get("tokenizer"):
      return tokenizers.load(folder / "tokenizer.json")
    family = family_of(config.system)
    return _tokenizer(folder, family) if family else None

  return Checkpoint(system, stored.shapes, stored.read, tokenizer, config.data.image_transform)
