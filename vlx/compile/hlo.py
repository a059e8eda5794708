"""Statistics of an optimized HLO program: collectives and kernels, with how often each
runs.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

COLLECTIVES = (
  "all-gather",
  "all-reduce",
  "reduce-scatter",
  "all-to-all",
  "ragged-all-to-all",
  "collective-permute",
  "collective-broadcast",
)
# Mosaic's and Triton's targets of `custom-call`.
KERNEL_TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "triton_kernel_call")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([^\s(]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?(\S+) = (.*)$")
_CALLED = re.compile(
  r"(?:calls|body|condition|to_apply|true_computation|false_computation)=%?([^\s,)}]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BODY = re.compile(r'"body":"([^"]*)"')  # Mosaic's program
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\]")


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line: `%name = shape opcode(operands), attributes`."""

  name: str
  shape: str
  opcode: str
  operands: tuple[str, ...]
  attributes: str
  literal: str = ""  # of a constant


@dataclasses.dataclass
class Collective:
  """All collectives of one kind in a step, as one device sees them.

  Attributes:
    count: how many run.
    bytes: the larger side of each, together: what an all-gather gives, what a reduce-scatter takes.
    in_unknown_loops: instructions in loops whose length the program does not say, counted as one
      turn.
  """

  count: int = 0
  bytes: int = 0
  in_unknown_loops: int = 0


def parse(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """(computation → instructions, name of the entry) of `Compiled.as_text()`."""
  computations, entry, current = {}, "", None
  for line in text.splitlines():
    if match := _COMPUTATION.match(line):
      current = computations.setdefault(match[2], [])
      entry = match[2] if match[1] else entry
    elif current is not None and (match := _INSTRUCTION.match(line)):
      current.append(_instruction(match[1], match[2]))
  return computations, entry


def _instruction(name: str, rest: str) -> Instruction:
  end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
  shape, rest = rest[:end], rest[end:].strip()
  start = rest.index("(")
  end = _closing(rest, start)
  operands = tuple(re.findall(r"%([^\s,()]+)", rest[start:end]))
  literal = rest[start + 1 : end - 1] if rest.startswith("constant(") else ""
  return Instruction(name, shape, rest[:start], operands, rest[end:], literal)


def _closing(text: str, start: int) -> int:
  """One after the parenthesis that closes the one at `start`."""
  depth = 0
  for i in range(start, len(text)):
    depth += {"(": 1, ")": -1}.get(text[i], 0)
    if not depth:
      return i + 1
  raise ValueError(f"unbalanced: {text[:200]}")


def size(shape: str) -> int:
  """Bytes of a shape, all parts of a tuple, e.g. "(bf16[8,128]{1,0:T(8,128)}, u32[])"."""
  total = 0
  for dtype, dims in _ARRAY.findall(shape):
    if dtype == "token":
      continue
    bits = 8 if dtype == "pred" else int(re.search(r"\d+", dtype)[0])
    total += math.prod(int(n.strip("<=")) for n in dims.split(",") if n) * bits // 8
  return total


def executed(text: str) -> Iterator[tuple[str, Instruction, int, bool, int]]:
  """(computation, instruction, runs, whether `runs` is known, bytes of operands) of all that a step runs."""
  computations, entry = parse(text)
  stack = [(entry, 1, True)]
  while stack:
    name, runs, known = stack.pop()
    shapes = {i.name: i.shape for i in computations[name]}
    for instruction in computations[name]:
      operands = sum(size(shapes[o]) for o in instruction.operands if o in shapes)
      yield name, instruction, runs, known, operands
      if instruction.opcode in ("async-update", "async-done"):
        continue  # they name the computation that async-start runs
      inner, inner_known = runs, known
      if instruction.opcode == "while":
        turns = _turns(computations, instruction)
        inner, inner_known = runs * (turns or 1), known and turns is not None
      called = _CALLED.findall(instruction.attributes)
      for branches in _BRANCHES.findall(instruction.attributes):
        called += [b.strip().lstrip("%") for b in branches.split(",")]
      stack += [(c, inner, inner_known) for c in called]


def _turns(computations: dict[str, list[Instruction]], loop: Instruction) -> int | None:
  """How often a loop's body runs; None where the program does not say.

  CPU and GPU programs note it. In TPU programs it is the n of the condition `counter < n`, for the
  loops of `scan` and of XLA's windowed products count from 0 by 1.
  """
  if noted := _TRIPS.search(loop.attributes):
    return int(noted[1])
  condition = computations[re.search(r"condition=%?([^\s,]+)", loop.attributes)[1]]
  last, values = condition[-1], {i.name: i for i in condition}
  if last.opcode != "compare" or "direction=LT" not in last.attributes:
    return None
  limit = values[last.operands[1]]
  return int(limit.literal) if limit.opcode == "constant" else None


def collectives(text: str) -> dict[str, Collective]:
  """Kind → count and bytes, loops multiplied out."""
  found: dict[str, Collective] = {}
  for computation, instruction, runs, known, operands in executed(text):
    kind = instruction.opcode.removesuffix("-start")
    if kind not in COLLECTIVES:
      continue
    result = size(instruction.shape)
    if instruction.opcode != kind and kind != "all-reduce":
      result -= operands  # a start's result carries its operands
    if computation.startswith("all-reduce-scatter"):
      kind = "reduce-scatter"  # TPU: an all-reduce and the slice that is kept, fused
    entry = found.setdefault(kind, Collective())
    entry.count += runs
    entry.bytes += runs * max(result, operands)
    entry.in_unknown_loops += not known
  return found


def kernels(text: str) -> dict[tuple[str, ...], int]:
  """Pallas kernels → runs per step; a kernel by the names of the instructions that call the same
  code.

  So layers of a size, and a layer that rematerialisation computes again, count as one kernel.
  """
  names: dict[str, list[str]] = {}
  found: dict[str, int] = {}
  for _, instruction, runs, _, _ in executed(text):
    if instruction.opcode == "custom-call" and any(
      f'custom_call_target="{t}"' in instruction.attributes for t in KERNEL_TARGETS
    ):
      body = _BODY.search(instruction.attributes)
      code = body[1] if body else instruction.name
      names.setdefault(code, []).append(instruction.name)
      found[code] = found.get(code, 0) + runs
  return {tuple(sorted(set(names[code]))): runs for code, runs in found.items()}
