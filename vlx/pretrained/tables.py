"""Between public checkpoints and vlx's variables, by a table of names per family.

A table is a list of rows (public name, vlx name, pattern). Where the public name has `{layer}` in
it, vlx keeps one array with a leading depth axis, which the public tensors of layers 0, 1, … fill.
The pattern is einops', from the public layout to vlx's, of one layer: ("(h e) d -> d h e", {"h":
12}), or ("", {}) for as it is. Turned round it leads back, so the same table imports and exports. A
row with several vlx names is for a public tensor that holds several variables, and its pattern puts
their axis first: "(n h e) d -> n d h e". A row without a vlx name is for what may be in a file or
not and holds no weights: it is neither read nor written.

For example, of BERT's query kernels (12 heads; torch keeps a dense layer's kernel as out × in):

  Row("encoder.layer.{layer}.attention.self.query.weight",
      "params/encoder/blocks/attention/query/kernel",
      ("(h e) d -> d h e", {"h": 12}))

reads the [768, 768] of layer l into [l] of one array [12, 768, 12, 64], and writes it back.
"""

import functools
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from typing import Any, NamedTuple

import einops
import jax
import numpy as np

from vlx.core.errors import UserError
from vlx.core.system import System, flatten

Pattern = tuple[str, Mapping[str, int]]
AS_IT_IS: Pattern = ("", {})

WORKERS = min(4, os.cpu_count() or 1)  # tensors that are read at a time
_MAX_LINES = 2000  # of what does not fit: as many as large models have tensors


class Row(NamedTuple):
  public: str  # as in the public file: "encoder.layer.{layer}.output.dense.weight"
  # the variable's path, or several: "params/encoder/blocks/mlp/fc2/kernel"
  name: str | tuple[str, ...] | None
  pattern: Pattern = AS_IT_IS


class CheckpointMap(NamedTuple):
  """How a family's public file fits a vlx system."""

  system: System  # frozen dataclass with init/loss
  rows: Sequence[Row]
  aliases: Sequence[tuple[str, str]] = ()
  copies: Mapping[str, str] = {}


class _Piece(NamedTuple):
  """One public tensor, and where it goes: a variable, or a layer of one; of several where it
  holds several.
  """

  public: str
  layer: int | None
  shape: tuple[int, ...]  # of the public tensor


def public_shapes(rows: Sequence[Row], variables: Any) -> dict[str, tuple[int, ...]]:
  """Names and shapes of the public tensors for variables (or their shapes)."""
  shapes = {name: leaf.shape for name, leaf in flatten(variables).items()}
  return {
    piece.public: piece.shape
    for row in _kept(rows)
    for piece in _pieces(row, shapes[_paths(row)[0]])
  }


def read(
  rows: Sequence[Row],
  variables: Any,
  shapes: Mapping[str, tuple[int, ...]],
  fetch: Callable[[str], np.ndarray],
  *,
  aliases: Sequence[tuple[str, str]] = (),
  copies: Mapping[str, str] = {},
  wanted: Mapping[str, Any] | None = None,
  place: Callable[[str, np.ndarray], Any] = lambda name, array: jax.device_put(array),
) -> dict[str, Any]:
  """Name → array of the variables that a public checkpoint holds.

  Everything is checked before the first tensor is read. Then each variable is allocated once,
  filled from the public tensors, `WORKERS` at a time, and placed; at most two are held that are not
  yet placed.

  Args:
    rows: the table.
    variables: the tree of all of them, of `jax.ShapeDtypeStruct` or arrays: names, shapes and
      types.
    shapes: of the tensors in the public file, by name.
    fetch: reads one of them.
    aliases: (pattern, replacement) by `re.sub`, from older public names to those of the table.
    copies: public names that a file may hold besides, each equal to the tensor of another: tied
      weights.
    wanted: those to read, with the types they are to have; all, as in `variables`, where None.
    place: puts a variable, given its name and the whole of it, where it belongs (its device and
      sharding). The array is given away: nobody writes to it again.

  Raises:
    UserError: with a line for every tensor that is missing, surplus, or of another shape, under
      both its names; for a copy that is not equal to its original.
  """
  found = {renamed(public, aliases): public for public in shapes}
  known = flatten(variables)
  wanted = known if wanted is None else wanted
  if problems := _problems(
    rows, known, {n: tuple(shapes[found[n]]) for n in found if n not in copies}
  ):
    more = [f"and {len(problems) - _MAX_LINES} more"] if len(problems) > _MAX_LINES else []
    lines = "\n".join(f"  {p}" for p in [*problems[:_MAX_LINES], *more])
    raise UserError(f"the checkpoint does not fit:\n{lines}")
  for copy, original in copies.items():
    if copy in found and not np.array_equal(fetch(found[copy]), fetch(found[original])):
      raise UserError(
        f"{found[copy]} and {found[original]} differ, but this model has one array for both"
      )

  def fill(row, arrays, piece):
    parts = _applied(row.pattern, fetch(found[piece.public]))
    for array, part in zip(arrays, parts if _holds_several(row) else [parts]):
      _copy(array[None] if piece.layer is None else array[piece.layer : piece.layer + 1], part)

  placed = {}

  def finish(paths, arrays, filling):
    for piece in filling:
      piece.result()
    placed.update(
      {path: place(path, array) for path, array in zip(paths, arrays) if path in wanted}
    )

  with futures.ThreadPoolExecutor(WORKERS) as pool:
    # The largest tensors first, while little else is held; a row is begun before the last is done,
    # that no worker waits.
    begun = None
    asked = [row for row in _kept(rows) if any(path in wanted for path in _paths(row))]
    for row in sorted(
      asked, key=lambda row: -math.prod(_pieces(row, known[_paths(row)[0]].shape)[0].shape)
    ):
      paths = _paths(row)
      arrays = [_aligned(known[path].shape, wanted.get(path, known[path]).dtype) for path in paths]
      filling = [pool.submit(fill, row, arrays, piece) for piece in _pieces(row, arrays[0].shape)]
      if begun:
        finish(*begun)
      begun = paths, arrays, filling
    if begun:
      finish(*begun)
  return placed


def export(rows: Sequence[Row], variables: Any) -> Iterator[tuple[str, np.ndarray]]:
  """The tensors of a public checkpoint, one after another, under their public names."""
  variables = flatten(variables)
  for row in _kept(rows):
    arrays = [variables[path] for path in _paths(row)]
    for piece in _pieces(row, arrays[0].shape):
      parts = [np.asarray(x if piece.layer is None else x[piece.layer]) for x in arrays]
      array = np.stack(parts) if _holds_several(row) else parts[0]
      # Not `ascontiguousarray`, which makes a scalar an array of one.
      yield piece.public, np.asarray(_applied(_inverse(row.pattern), array), order="C")


def _problems(rows, wanted, shapes) -> list[str]:
  """Why tensors of these shapes are not the variables wanted, a line for each reason."""
  kept = {path: row for row in _kept(rows) for path in _paths(row)}
  problems = [
    f"the table has {row.public} for {name}, which the model lacks"
    for name, row in kept.items()
    if name not in wanted
  ]
  problems += [f"the table has nothing for {name}" for name in wanted if name not in kept]
  known = set()
  for row in _kept(rows):
    path, name = _paths(row)[0], _named(row)
    for public, layer, shape in _pieces(row, wanted[path].shape) if path in wanted else ():
      known.add(public)
      where = name if layer is None else f"layer {layer} of {name}"
      if public not in shapes:
        problems.append(f"missing: {public} {list(shape)} for {where}")
      elif shapes[public] != shape:
        problems.append(
          f"misshapen: {public} is {list(shapes[public])}, not {list(shape)}, for {where}"
        )
  names_of = {row.public: _named(row) for row in rows}
  for public in shapes.keys() - known:
    name = names_of.get(
      public, names_of.get(re.sub(r"(?<=[._])\d+(?=[./])", "{layer}", public, count=1))
    )
    if name != "":
      why = f"a layer that {name} lacks" if name else "which the model has no place for"
      problems.append(f"surplus: {public} {list(shapes[public])}, {why}")
  return sorted(problems)


def _kept(rows: Sequence[Row]) -> list[Row]:
  return [row for row in rows if row.name]


def _paths(row: Row) -> tuple[str, ...]:
  return row.name if _holds_several(row) else (row.name,)


def _holds_several(row: Row) -> bool:
  return isinstance(row.name, tuple)


def _named(row: Row) -> str:
  """The variables of a row, for messages; empty where it has none."""
  return ", ".join(_paths(row)) if row.name else ""


def _pieces(row: Row, shape: tuple[int, ...]) -> list[_Piece]:
  """The public tensors of a variable of that shape, or of several."""
  many = (len(row.name),) if _holds_several(row) else ()
  if "{layer}" not in row.public:
    return [_Piece(row.public, None, _public_shape(row.pattern, many + shape))]
  of_layer = _public_shape(row.pattern, many + shape[1:])
  return [_Piece(row.public.format(layer=i), i, of_layer) for i in range(shape[0])]


def _public_shape(pattern, shape) -> tuple[int, ...]:
  turned, sizes = _inverse(pattern)
  return _shape_after(turned, tuple(sizes.items()), tuple(shape))


@functools.lru_cache(maxsize=1024)
def _shape_after(pattern: str, sizes: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
  x = jax.ShapeDtypeStruct(shape, np.float32)
  return jax.eval_shape(lambda x: _applied((pattern, dict(sizes)), x), x).shape


def _inverse(pattern):
  there, sizes = pattern
  return " -> ".join(reversed(there.split(" -> "))), sizes


def _applied(pattern, array):
  there, sizes = pattern
  return einops.rearrange(array, there, **sizes) if there else array


def renamed(public: str, aliases: Sequence[tuple[str, str]]) -> str:
  """The table's name for a name in a file."""
  for pattern, replacement in aliases:
    public = re.sub(pattern, replacement, public)
  return public


def _aligned(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
  """Uninitialised, and so aligned that JAX takes it on CPU without a copy."""
  alignment, size = 64, int(np.prod(shape)) * np.dtype(dtype).itemsize
  room = np.empty(size + alignment, np.uint8)
  start = -room.ctypes.data % alignment
  return room[start : start + size].view(dtype).reshape(shape)


def _copy(target: np.ndarray, source: np.ndarray) -> None:
  """target[0] = source, for a target in the order of memory and a source in any.

  Across the order of memory each element of a row of the target comes from a cache line of its own,
  and where the stride has a large power of two in it those lines have the same few places in the
  cache. So strips of the source go through room that stays in the cache, where the stride is
  another.
  """
  axes: list[tuple[int, int]] = []  # (size, stride) of the source, those joined that lie as one
  for size, stride in zip(source.shape, source.strides):
    if axes and axes[-1][1] == size * stride:
      size *= axes.pop()[0]
    axes.append((size, stride))
  shape, strides = zip(*axes) if axes else ((), ())
  source = np.lib.stride_tricks.as_strided(source, shape, strides)
  target = target.reshape(shape)
  # its bytes, or more
  column = source.itemsize + sum((n - 1) * stride for n, stride in zip(shape[:-1], strides[:-1]))
  if len(axes) < 2 or not source.size or strides[-1] < column:
    target[...] = source
    return
  line = 64
  # in all the best of 1 to 16, over kernels of 768 to 30,522 rows
  width = 6 * line // source.itemsize
  room = np.empty((width, column + line), np.uint8)
  for start in range(0, shape[-1], width):
    part = source[..., start : start + width]
    strip = np.ndarray(part.shape, part.dtype, room, strides=(*strides[:-1], room.strides[0]))
    strip[...] = part
    target[..., start : start + width] = strip
