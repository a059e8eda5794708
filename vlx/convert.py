"""python -m vlx.convert --source=DIR_OR_FILE_OR_NAME --output=DIR

A public checkpoint (whatever `vlx.pretrained.load` reads) becomes a folder of vlx; a folder of vlx,
converted or trained, becomes one of Hugging Face's that transformers' `from_pretrained` loads, or
diffusers'.

A folder of vlx that was converted is the part of a run's folder that says what the model is:
`config.json` with `system`, `model` and `data.image_transform`; `checkpoints/0` with the variables,
without an optimizer's state; and the tokenizer's files as they were. `vlx.pretrained.load` reads
it, and a config can start from it.
"""

import pathlib
import shutil

import ml_collections
from absl import flags

from vlx import cli
from vlx.core import checkpoint, files
from vlx.core import config as configs
from vlx.core.errors import UserError
from vlx.core.system import System, Variables
from vlx.pretrained import load as load_public
from vlx.pretrained import tables, to_diffusers
from vlx.pretrained.formats.safetensors import write_safetensors
from vlx.pretrained.load import CLIP_VOCABULARY, FAMILIES, family_of, is_vlx, locate, module

SOURCE = flags.DEFINE_string(
  "source", None, "A public checkpoint or its name on the hub, or a folder of vlx."
)
OUTPUT = flags.DEFINE_string("output", None, "A folder that is not there yet.")

# What stands beside the weights and is taken along.
COMPANIONS = (
  "preprocessor_config.json",
  "tokenizer.json",
  "tokenizer_config.json",
  "special_tokens_map.json",
  "added_tokens.json",
  "vocab.json",
  "merges.txt",
  "vocab.txt",
  "tokenizer.model",
  "chat_template.jinja",
  "generation_config.json",
  CLIP_VOCABULARY,
)


def to_vlx(source: pathlib.Path, output: pathlib.Path) -> None:
  """Writes a folder of vlx from a public checkpoint."""
  found = load_public(source)
  save_vlx(output, found.system, found.variables, found.image_transform)
  _copy_companions(source, output)


def save_vlx(
  folder: pathlib.Path, system: System, variables: Variables, image_transform: str
) -> None:
  """Writes what `vlx.pretrained.load` reads; the config last, so that a folder with one is
  whole.
  """
  with checkpoint.open_manager(folder / "checkpoints") as manager:
    checkpoint.save(manager, 0, {"variables": variables, "average": {}})
  section = configs.part_of(system)
  name = section.pop("system")
  config = ml_collections.ConfigDict(
    dict(system=name, model=section, data=dict(image_transform=image_transform))
  )
  configs.write(folder, configs.Kept(config, config))


def to_hugging_face(source: pathlib.Path, output: pathlib.Path) -> None:
  """Writes a folder of Hugging Face's from one of vlx.

  Raises:
    UserError: for a system that has no counterpart there.
  """
  found = load_public(source)
  kind = configs.part_of(found.system)["system"]
  family = family_of(kind)
  if family is None:
    known = ", ".join(path for paths in FAMILIES.values() for path in paths)
    raise UserError(f"{source} holds a {kind}; vlx exports {known} to Hugging Face")
  if family == "diffusers":
    _write_diffusers(to_diffusers.folder(found.system, found.variables), found.variables, output)
    if (source / "tokenizer").is_dir():
      shutil.copytree(source / "tokenizer", output / "tokenizer")
    return
  # CLIPModel takes a text's feature where its config says that texts end.
  ends = dict(end_id=found.tokenizer.end_id) if family == "clip" and found.tokenizer else {}
  config, layout = module(family).to_hugging_face(found.system, **ends)
  output.mkdir(parents=True, exist_ok=True)
  shapes = tables.public_shapes(layout.rows, found.variables)
  write_safetensors(
    output / "model.safetensors", shapes, tables.export(layout.rows, found.variables)
  )
  _copy_companions(source, output)
  files.write(output / "config.json", configs.to_json(ml_collections.ConfigDict(config)))


def _write_diffusers(
  folder: to_diffusers.Folder, variables: Variables, output: pathlib.Path
) -> None:
  for name, network in folder.networks.items():
    place = output / name
    place.mkdir(parents=True, exist_ok=True)
    # Of text encoders transformers asks for this name.
    file = "model" if name in ("text_encoder", "bert") else "diffusion_pytorch_model"
    shapes = tables.public_shapes(network.rows, variables)
    write_safetensors(place / f"{file}.safetensors", shapes, tables.export(network.rows, variables))
    files.write(place / "config.json", configs.to_json(ml_collections.ConfigDict(network.config)))
  for name, content in folder.configs.items():
    (output / name).parent.mkdir(parents=True, exist_ok=True)
    files.write(output / name, configs.to_json(ml_collections.ConfigDict(content)))


def _copy_companions(source: pathlib.Path, output: pathlib.Path) -> None:
  folder = source if source.is_dir() else source.parent
  for name in COMPANIONS:
    if (folder / name).is_file():
      shutil.copy(folder / name, output / name)
  if (folder / "tokenizer").is_dir():  # of a pipeline
    shutil.copytree(folder / "tokenizer", output / "tokenizer")


def main():
  if SOURCE.value is None or OUTPUT.value is None:
    raise UserError("give --source=DIR_OR_FILE and --output=DIR")
  output = pathlib.Path(OUTPUT.value).expanduser()
  if output.exists() and (not output.is_dir() or any(output.iterdir())):
    raise UserError(f"{output} is there already; name another --output")
  source = locate(SOURCE.value)
  convert = to_hugging_face if is_vlx(source) else to_vlx
  convert(source, output)
  print(f"{output} is written")


if __name__ == "__main__":
  cli.run(main)
