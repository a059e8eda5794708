"""Preprocessing as a string of ops, read left to right.

`decode|cache|random_resized_crop(64)|normalize|tokenize("caption", 32)|keep("image", "text")`

An op is a function of its arguments that returns `apply(example, rng) -> example`; it may use `rng`
(a numpy Generator that is a function of the seed and the example's position) and must not change
the arrays it is given. An op of one's own is named by its import path, `my.module.op(3)`. Images are
uint8 arrays `[H, W, 3 or 4]` until `normalize`. What stands left of `cache` is done once for each
record and kept in memory, so no op there may be random.
"""

import ast
import dataclasses
import inspect
import string

import numpy as np

from vlx.core.config import import_path, nearest
from vlx.core.errors import UserError
from vlx.data.tokenizers import Tokenizer
from vlx.data.transforms import augment, fields, images, texts  # whose ops they know
from vlx.data.transforms.ops import OPS, Example, NothingRandom, Op

NAME = {*string.ascii_letters, *string.digits, "_", "."}


@dataclasses.dataclass(frozen=True)
class Preprocess:
  """The two halves of a preprocessing string, around its `cache` (first half empty without one);
  names with their ops.
  """

  once: tuple[tuple[str, Op], ...]
  each_time: tuple[tuple[str, Op], ...]
  cached: bool

  def prepare(self, record: Example) -> Example:
    """The ops left of `cache`."""
    return _apply(self.once, record, NothingRandom())

  def finish(self, example: Example, rng: np.random.Generator | None) -> Example:
    """The ops right of `cache`; in evaluation without a generator."""
    return _apply(self.each_time, example, NothingRandom() if rng is None else rng)

  def without_normalize(self) -> "Preprocess":
    """The same with images left uint8, to be looked at."""
    plain = lambda ops: tuple(named for named in ops if named[0] != "normalize")
    return Preprocess(plain(self.once), plain(self.each_time), self.cached)


def _apply(ops, example, rng):
  for _, apply in ops:
    example = apply(example, rng)
  return example


def parse(text: str, tokenizer: Tokenizer | None = None) -> Preprocess:
  """The ops of a preprocessing string. Arguments are Python literals.

  Args:
    text: ops joined by "|".
    tokenizer: for `tokenize`.

  Raises:
    UserError: for an unknown op (with the nearest known one) or arguments that do not fit.
  """
  ops, cache_at = [], None
  for part in _split(text):
    name, args, kwargs = _parse_call(part)
    if name == "cache":
      cache_at = len(ops)
      continue
    if name not in OPS and "." not in name:
      raise UserError(f"no preprocessing op {name!r} in {text!r}: {nearest(name, [*OPS, 'cache'])}")
    factory = OPS[name] if name in OPS else import_path(name)
    signature = inspect.signature(factory)
    if "tokenizer" in signature.parameters:
      kwargs["tokenizer"] = tokenizer
    try:
      signature.bind(*args, **kwargs)
    except TypeError as e:
      raise UserError(f"preprocessing op {part!r}: {e}; it takes {name}{signature}") from e
    ops.append((name, factory(*args, **kwargs)))
  cut = cache_at or 0
  return Preprocess(tuple(ops[:cut]), tuple(ops[cut:]), cache_at is not None)


def _split(text: str) -> list[str]:
  """Splits at the bars that stand outside of string literals."""
  parts, quote = [""], None
  for c in text:
    if quote is None and c == "|":
      parts.append("")
      continue
    if c in "\"'":
      quote = c if quote is None else None if c == quote else quote
    parts[-1] += c
  return [p.strip() for p in parts]


def _parse_call(text: str) -> tuple[str, list, dict]:
  try:
    node = ast.parse(text, mode="eval").body
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if set(ast.unparse(call.func)) <= NAME:
      args = [ast.literal_eval(a) for a in call.args]
      return ast.unparse(call.func), args, {k.arg: ast.literal_eval(k.value) for k in call.keywords}
  except (SyntaxError, ValueError):
    pass
  raise UserError(f"cannot read the preprocessing op {text!r}; ops look like resize(64)")
