"""What training puts before all names of a checkpoint: `torch.compile`, data parallel training, and
classes that hold the model as their `model`.
"""

import re
from collections.abc import Callable, Iterator, Mapping

from vlx.core.errors import UserError
from vlx.pretrained.formats import TensorFile
from vlx.pretrained.tables import CheckpointMap, renamed

PREFIXES = ("_orig_mod.", "module.", "model.")
_MOST = 8  # of them before a name


def unwrapped(file: TensorFile) -> Iterator[TensorFile]:
  """The file as it is, and then without one more of the prefixes that all of its names have."""
  yield file
  has_all = lambda prefix: all(name.startswith(prefix) for name in file.shapes)
  for _ in range(_MOST):
    if not file.shapes or (prefix := next(filter(has_all, PREFIXES), None)) is None:
      return
    file = _without(file, prefix)
    yield file


def bare(file: TensorFile) -> TensorFile:
  """Without any of them: for files whose own names begin with none."""
  *_, last = unwrapped(file)
  return last


def fitting(
  file: TensorFile,
  layout_of: Callable[[Mapping[str, tuple[int, ...]]], tuple[str, CheckpointMap] | None],
) -> tuple[str, CheckpointMap, TensorFile] | None:
  """(family, layout, file) with the names that the layout knows.

  A prefix may be the model's own, as LLaMA's "model." is. So the names are taken as they are where
  the layout knows them all, else without as many prefixes as make it know the most.

  Args:
    file: with the names that lie there.
    layout_of: shapes by name → the family and its layout; None where it is of none.

  Raises:
    UserError: of `layout_of`, where it finds a layout for none.
  """
  found, errors = [], []
  for candidate in unwrapped(file):
    try:
      known = layout_of(candidate.shapes)
    except UserError as e:
      errors.append(e)
      continue
    if known is None:
      continue
    count = _known(known[1], candidate.shapes)
    if count == len(candidate.shapes):
      return (*known, candidate)
    found.append((count, known, candidate))
  if found:
    _, known, candidate = max(found, key=lambda item: item[0])  # of equal ones the first
    return (*known, candidate)
  if errors:
    raise errors[0]
  return None


def _known(layout: CheckpointMap, names: Mapping) -> int:
  """How many names stand in a layout's table."""
  publics = {row.public for row in layout.rows} | layout.copies.keys()
  layers = [re.escape(name).replace(r"\{layer\}", r"\d+") for name in publics if "{layer}" in name]
  pattern = re.compile("|".join(layers) or "(?!)")
  found = (renamed(name, layout.aliases) for name in names)
  return sum(name in publics or bool(pattern.fullmatch(name)) for name in found)


def _without(file: TensorFile, prefix: str) -> TensorFile:
  return TensorFile(
    {name.removeprefix(prefix): shape for name, shape in file.shapes.items()},
    lambda name: file.fetch(prefix + name),
    file.metadata,
  )
