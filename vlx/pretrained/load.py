"""`vlx.pretrained.load`: whatever people have on disk → a system and its variables, tokenizer and preprocessing.

A folder of Hugging Face's (`config.json` beside safetensors or torch's files, in one or many), of open_clip's, of
Meta's (`params.json` beside `consolidated.*.pth`), of OpenAI's dVAE (`encoder.pkl` and `decoder.pkl`), or of vlx (a run, or
what `vlx.convert` wrote); a single file of safetensors, torch, numpy or llama.cpp; or the name of a repository on Hugging Face's hub.
"""

import importlib
import pathlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

from vlx.core import config as configs
from vlx.data.tokenizers import public as public_tokenizers
from vlx.data.tokenizers import own as tokenizers
from vlx.core.errors import UserError
from vlx.core.system import System, Variables
from vlx.pretrained import tables
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.formats.files import read_json
from vlx.pretrained.formats.npz import open_npz
from vlx.pretrained.formats.safetensors import open_safetensors
from vlx.pretrained.formats.shards import open_index, open_joined, open_parts
from vlx.pretrained.formats.torch_files import open_torch
from vlx.pretrained.hub import download
from vlx.pretrained.tables import Layout
from vlx.core import checkpoint
from vlx.core import partition as partitions

# Families by `model_type` of a config.json, each the module `vlx.pretrained.NAME`; and what their systems are.
FAMILIES = {
    "bert": "vlx.models.pretraining.bert.MaskedLanguageModel",
    "clip": "vlx.models.contrastive.clip.CLIP",
    "llama": "vlx.models.language.llama.LanguageModel",
    "vit": "vlx.models.vision.vit.ViT",
}
DVAE_HALVES = ("encoder", "decoder")  # of OpenAI's, files of their own
# Those whose files also come bare, and are known by their names and shapes.
BARE = ("vgg", "resnet", "googlenet", "vit", "clip")

OPENERS: dict[str, Callable[[pathlib.Path], TensorFile]] = {
    ".safetensors": open_safetensors, ".npz": open_npz,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt"), open_torch),
}
# What a folder may have, the first that is there.
WEIGHTS = (
    "model.safetensors.index.json", "model.safetensors", "pytorch_model.bin.index.json", "pytorch_model.bin",
    "open_clip_model.safetensors", "open_clip_pytorch_model.bin",
)
OPEN_CLIP = "open_clip_config.json"
CLIP_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class Pretrained(NamedTuple):
  system: System
  variables: Variables
  tokenizer: Any  # with `encode(text, length)`; None where there is none
  preprocess: str  # ops on pictures (vlx.data.transforms.preprocess), up to what the system takes; "" for language models


class _Found(NamedTuple):
  """A checkpoint before its tensors are read."""

  family: str
  layout: Layout
  file: TensorFile


def load(
    path_or_name: str | pathlib.Path, *, mesh: Mesh | None = None, partition: partitions.Rules = ((".*", ()),)
) -> Pretrained:
  """A public checkpoint, or a model of vlx's own.

  Each tensor goes from its file to where it belongs; beside the variables the host holds only what is being read.

  Args:
    path_or_name: a folder, a file, or the name of a repository on the hub ("openai/clip-vit-base-patch32").
    mesh: of the devices that the variables go to; the first device alone where None.
    partition: rules from names of parameters to axes of the mesh, as in a config; by default each device holds
      all of them.

  Raises:
    UserError: where there is no such thing, where it is damaged, of a family or format that vlx does not know, or
      more than data; with a line for each tensor that does not fit.
  """
  path = locate(path_or_name)
  if is_vlx(path):
    return _load_vlx(path, mesh, partition)
  family, layout, file = _find(path)
  shapes = variable_shapes(layout.system)
  variables = tables.load(
      layout.rows, shapes, file.shapes, file.fetch, aliases=layout.aliases, copies=layout.copies,
      place=_placer(shapes, mesh, partition),
  )
  if path.suffix == ".gguf":
    tokenizer = public_tokenizers.from_gguf(file.metadata)
  else:
    tokenizer = _tokenizer(path, family)
  return Pretrained(layout.system, variables, tokenizer, _preprocess(path, family, layout.system))


def locate(path_or_name: str | pathlib.Path) -> pathlib.Path:
  """The folder or file; of a repository on the hub, where its copy lies."""
  path = pathlib.Path(path_or_name).expanduser()
  return path if path.exists() else download(str(path_or_name))


def module(family: str) -> ModuleType:
  """The one that knows a family's files."""
  return importlib.import_module(f"vlx.pretrained.{family}")


def is_vlx(path: pathlib.Path) -> bool:
  """Whether a folder is a run's, or one that `vlx.convert` wrote."""
  return (path / "config.json").is_file() and "system" in read_json(path / "config.json")


def variable_shapes(system: System) -> Variables:
  """Of a system's variables; no array is made."""
  tower = getattr(system, "image", None) or getattr(system, "tower", None)
  size = getattr(tower or system, "image_size", 224)
  batch = dict(
      image=jax.ShapeDtypeStruct((1, size, size, 3), np.float32),
      text=jax.ShapeDtypeStruct((1, 2), np.int32),
      text_mask=jax.ShapeDtypeStruct((1, 2), np.bool_),
  )
  return jax.eval_shape(system.init, jax.random.key(0), batch)


def _find(path: pathlib.Path) -> _Found:
  if path.is_file():
    return _of_file(path)
  if (path / "params.json").is_file():
    return _of_meta(path)
  halves = {half: path / f"{half}.pkl" for half in DVAE_HALVES}
  if all(file.is_file() for file in halves.values()):
    return _of_dvae(path, halves)
  weights = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
  if weights is None:
    files = sorted(f for f in path.iterdir() if f.suffix in (*OPENERS, ".gguf"))
    if len(files) != 1:
      raise UserError(
          f"{path} holds {'no' if not files else 'many'} files of weights, and none that is called"
          f" {', '.join(WEIGHTS)}; name one of them"
      )
    weights, = files
  config = read_json(path / "config.json") if (path / "config.json").is_file() else {}
  if config.get("model_type") is None and (path / OPEN_CLIP).is_file():
    file = _open(weights)
    return _Found("clip", module("clip").from_open_clip(read_json(path / OPEN_CLIP), file.shapes), file)
  if config.get("model_type") is None:
    return _of_file(weights)
  if config["model_type"] not in FAMILIES:
    raise UserError(
        f"{path / 'config.json'}: the model type is {config['model_type']!r}; vlx knows {', '.join(FAMILIES)}"
    )
  family = config["model_type"]
  return _Found(family, module(family).from_hugging_face(config), _open(weights))


def _open(path: pathlib.Path) -> TensorFile:
  if path.name.endswith(".index.json"):
    return open_index(path, _open)
  if path.suffix not in OPENERS:
    raise UserError(f"{path}: vlx reads {', '.join((*OPENERS, '.gguf'))}")
  return OPENERS[path.suffix](path)


def _of_file(path: pathlib.Path) -> _Found:
  """A file that has nothing beside it to say what it is."""
  if path.suffix == ".gguf":
    from vlx.pretrained.formats.gguf import open_gguf

    file = open_gguf(path)
    return _Found("llama", module("llama").from_gguf(file), file)
  file = _open(path)
  for family in BARE:
    if (layout := module(family).from_shapes(file.shapes)) is not None:
      return _Found(family, layout, file)
  some = ", ".join(sorted(file.shapes)[:3])
  raise UserError(f"{path} is of no family that vlx knows by its names ({some}, …)")


def _of_meta(folder: pathlib.Path) -> _Found:
  files = sorted(folder.glob("consolidated.*.pth"))
  if not files:
    raise UserError(f"{folder} has a params.json and no consolidated.*.pth beside it")
  llama = module("llama")
  layout = llama.from_meta(read_json(folder / "params.json"))
  return _Found("llama", layout, open_joined([open_torch(file) for file in files], llama.META_SHARD_AXES))


def _of_dvae(folder: pathlib.Path, halves: dict[str, pathlib.Path]) -> _Found:
  file = open_parts({half: open_torch(path) for half, path in halves.items()})
  layout = module("dvae").from_shapes(file.shapes)
  if layout is None:
    raise UserError(f"{folder}: encoder.pkl and decoder.pkl are not those of OpenAI's dVAE")
  return _Found("dvae", layout, file)


def _tokenizer(path: pathlib.Path, family: str) -> Any:
  """Of the files beside the weights; CLIP's text is mended by rules of its own first."""
  if family != "clip":
    return public_tokenizers.load(path) if path.is_dir() else None
  folder = path if path.is_dir() else path.parent
  if any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
    return tokenizers.load_clip(folder)
  return tokenizers.load_clip(folder / CLIP_VOCABULARY) if (folder / CLIP_VOCABULARY).is_file() else None


def _preprocess(path: pathlib.Path, family: str, system: System) -> str:
  if not hasattr(module(family), "preprocess"):
    return ""
  folder = path if path.is_dir() else path.parent
  file, open_clip = folder / "preprocessor_config.json", folder / OPEN_CLIP
  if family == "clip" and open_clip.is_file() and not file.is_file():
    return module(family).open_clip_preprocess(system, read_json(open_clip))
  return module(family).preprocess(system, read_json(file) if file.is_file() else None)


def _placer(shapes: Variables, mesh: Mesh | None, rules: partitions.Rules):
  """From a variable's name and the whole of it to the array on its devices."""
  if mesh is None:
    return lambda name, array: jax.device_put(array, jax.devices()[0])
  shardings = _shardings(shapes, mesh, rules)
  named = dict(zip(jax.tree.leaves(partitions.names(shapes)), jax.tree.leaves(shardings)))
  return lambda name, array: jax.make_array_from_callback(array.shape, named[name], array.__getitem__)


def _shardings(variables: Variables, mesh: Mesh, rules: partitions.Rules) -> Variables:
  """Parameters by the rules, all else on every device."""
  matched = partitions.match(rules, variables["params"], "partition")
  return {
      "params": jax.tree.map(lambda i: NamedSharding(mesh, P(*rules[i][1])), matched),
      "state": jax.tree.map(lambda _: partitions.replicated(mesh), variables["state"]),
  }


def _load_vlx(folder: pathlib.Path, mesh: Mesh | None, rules: partitions.Rules) -> Pretrained:
  config = configs.from_json((folder / "config.json").read_text())
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  variables = checkpoint.restore_variables(folder, partitions.replicated(mesh) if mesh else one)
  if mesh is not None:
    variables = jax.device_put(variables, _shardings(variables, mesh, rules))
  if config.get("tokenizer"):
    tokenizer = tokenizers.load(folder / "tokenizer.json")
  else:
    family = next((name for name, system in FAMILIES.items() if system == config.system), None)
    tokenizer = _tokenizer(folder, family) if family else None
  return Pretrained(configs.build_system(config), variables, tokenizer, _picture_ops(config))


def _picture_ops(config) -> str:
  """What `vlx.convert` wrote down; of a run the ops of its first evaluator, up to `normalize`."""
  if "preprocess" in config:
    return config.preprocess
  for section in config.get("evaluators", {}).values():
    ops = section.get("preprocess", "").split("|")
    last = next((i for i, op in enumerate(ops) if op.startswith("normalize")), None)
    if last is not None:
      return "|".join(ops[: last + 1])
  return ""
