"""Many files that together are one checkpoint: those of an index, and Meta's, which each hold a
part of each tensor.
"""

import pathlib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from vlx.core.errors import UserError
from vlx.core.files import read_json
from vlx.pretrained.formats import TensorFile


def open_index(index: pathlib.Path, open_file: Callable[[pathlib.Path], TensorFile]) -> TensorFile:
  """Opens `model.safetensors.index.json` or `pytorch_model.bin.index.json`: its "weight_map" says
  what lies where.
  """
  places = read_json(index).get("weight_map")
  if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
    raise UserError(f"{index} has no weight_map from tensors to files")
  for file in set(places.values()):
    # Nor an index: it could be this one.
    if pathlib.Path(file).name != file or "\0" in file or file.endswith(".index.json"):
      raise UserError(f"{index} names {file!r}, which is not a file beside it with weights")
  files = {file: open_file(index.parent / file) for file in sorted(set(places.values()))}
  for name, file in places.items():
    if name not in files[file].shapes:
      raise UserError(f"{index} says that {name} is in {file}, which lacks it")
  return TensorFile(
    {name: files[file].shapes[name] for name, file in places.items()},
    lambda name: files[places[name]].fetch(name),
  )


def open_parts(parts: Mapping[str, TensorFile]) -> TensorFile:
  """Files of different tensors, whose names get "PART." before them."""
  return TensorFile(
    {
      f"{part}.{name}": shape for part, file in parts.items() for name, shape in file.shapes.items()
    },
    lambda name: parts[name.partition(".")[0]].fetch(name.partition(".")[2]),
  )


def open_joined(files: Sequence[TensorFile], axes: Sequence[tuple[str, int]]) -> TensorFile:
  """Files that each hold a slice of the tensors that a pattern of `axes` names, along its axis,
  and all of others.
  """
  if any(file.shapes.keys() != files[0].shapes.keys() for file in files):
    raise UserError("the shards of the checkpoint hold different tensors")
  axis_of = {
    name: next((axis for pattern, axis in axes if re.search(pattern, name)), None)
    for name in files[0].shapes
  }

  def shape(name):
    axis, whole = axis_of[name], list(files[0].shapes[name])
    if axis is not None and axis >= len(whole):
      raise UserError(f"the shards of {name} do not join along their axis {axis}: {whole}")
    for file in files[1:]:
      part = file.shapes[name]
      if len(part) != len(whole) or any(
        n != m for i, (n, m) in enumerate(zip(part, whole)) if i != axis
      ):
        raise UserError(f"the shards of {name} do not join: {whole} and {list(part)}")
      if axis is not None:
        whole[axis] += part[axis]
    return tuple(whole)

  def fetch(name):
    if axis_of[name] is None or len(files) == 1:
      return files[0].fetch(name)
    return np.concatenate([file.fetch(name) for file in files], axis_of[name])

  return TensorFile({name: shape(name) for name in axis_of}, fetch)
