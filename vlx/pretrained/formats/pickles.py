"""Pickles read as data: no class is looked up, nothing that they name is imported or called.

A pickle is a program for a small stack machine, and Python's own runs whatever it names. This one
knows numbers, strings and containers. All else goes through `call`, to which the reader of a format
gives a meaning for the few names that it knows; any other is rejected by name.
"""

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

# A pickle of kilobytes can ask for more than any machine has: by keys whose hash takes for ever, by
# copies of copies. Far more than any checkpoint's.
MAX_OPERATIONS, MAX_COPIED, _MAX_NAME = 10**7, 10**7, 1000
_KEYS = (str, int, float, bool, bytes, type(None))
_SIZED = (dict, list, set, frozenset, tuple, str, bytes)


class Refused(Exception):
  """The pickle holds what is no data; the message names it."""


class Global(NamedTuple):
  """A name that a pickle gives, "torch._utils._rebuild_tensor_v2". It stands for nothing but
  itself.
  """

  name: str


class Module(dict):
  """An object by its attributes, which is all that is read of it."""


class _Pieces:
  """A file that is read in pieces: for a text that claims gigabytes Python would set them aside
  before it sees that the file ends.
  """

  LARGEST = 1 << 20

  def __init__(self, file: BinaryIO):
    self._file, self.readline = file, file.readline

  def read(self, count: int) -> bytes:
    if count <= self.LARGEST:
      return self._file.read(count)
    found = []
    while count > 0 and (piece := self._file.read(min(count, self.LARGEST))):
      found.append(piece)
      count -= len(piece)
    return b"".join(found)


_MARK = object()
_LITERALS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
# What the opcode's argument is pushed for, as pickletools reads it.
_VALUES = frozenset(
  "INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8"
  " STRING BINSTRING SHORT_BINSTRING BINBYTES SHORT_BINBYTES BINBYTES8".split()
)
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple, "EMPTY_SET": set}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_FROM_MARK = {"TUPLE": tuple, "LIST": list, "FROZENSET": frozenset}


def read(
  file: BinaryIO,
  admitted: Callable[[str], bool],
  call: Callable[[Global, tuple], Any],
  persistent: Callable[[Any], Any] = lambda pid: None,
) -> Any:
  """The value of the pickle that `file` stands at; `file` then stands behind it.

  Args:
    file: opened for reading bytes.
    admitted: whether a name may occur.
    call: what the pickle's call of such a name, with arguments, stands for.
    persistent: what an id of the format's own stands for.

  Raises:
    Refused: for a name that is not admitted, an operation that no data needs, a damaged pickle.
  """
  try:
    return _run(pickletools.genops(_Pieces(file)), admitted, call, persistent)
  except Refused:
    raise
  except Exception as e:  # Damaged bytes trip the machine anywhere.
    raise Refused(f"a damaged pickle ({type(e).__name__}: {e})") from e


def _run(operations, admitted, call, persistent):
  stack, memo, copied = [], {}, 0

  def global_of(name):
    if len(name) > _MAX_NAME or not admitted(name):
      raise Refused(name[:_MAX_NAME])
    return Global(name)

  def pop_mark():
    at = len(stack) - 1
    while stack[at] is not _MARK:
      at -= 1
    items = stack[at + 1 :]
    del stack[at:]
    return items

  def pairs(items):
    return dict(zip(keys(items[::2]), items[1::2], strict=True))

  def within(count):
    nonlocal copied
    copied += count
    if copied > MAX_COPIED:
      raise Refused("more than a checkpoint has")

  for number, (operation, argument, _) in enumerate(operations):
    if number == MAX_OPERATIONS:
      raise Refused(f"more than {MAX_OPERATIONS} operations")
    name = operation.name
    if name in _VALUES:
      stack.append(argument)
    elif name in _LITERALS:
      stack.append(_LITERALS[name])
    elif name in _EMPTY:
      stack.append(_EMPTY[name]())
    elif name in _TUPLES:
      stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
    elif name == "MARK":
      stack.append(_MARK)
    elif name in _FROM_MARK:
      items = pop_mark()
      stack.append(_FROM_MARK[name](keys(items) if name == "FROZENSET" else items))
    elif name == "DICT":
      items = pop_mark()
      stack.append(pairs(items))
    elif name == "SETITEM":
      value, key = stack.pop(), stack.pop()
      keys([key])
      _checked(stack[-1], dict)[key] = value
    elif name == "SETITEMS":
      items = pop_mark()
      _checked(stack[-1], dict).update(pairs(items))
    elif name == "APPEND":
      item = stack.pop()
      _checked(stack[-1], list).append(item)
    elif name == "APPENDS":
      items = pop_mark()
      _checked(stack[-1], list).extend(items)
    elif name == "ADDITEMS":
      items = pop_mark()
      _checked(stack[-1], set).update(keys(items))
    elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
      memo[argument] = stack[-1]
    elif name == "MEMOIZE":
      memo[len(memo)] = stack[-1]
    elif name in ("GET", "BINGET", "LONG_BINGET"):
      stack.append(memo[argument])
    elif name == "POP":
      stack.pop()
    elif name == "POP_MARK":
      pop_mark()
    elif name == "DUP":
      stack.append(stack[-1])
    elif name == "GLOBAL":
      stack.append(global_of(argument.replace(" ", ".", 1)))
    elif name == "STACK_GLOBAL":
      attribute, module = stack.pop(), stack.pop()
      if not isinstance(module, str) or not isinstance(attribute, str):
        raise Refused("a name that is no text")
      within(len(module) + len(attribute))
      stack.append(global_of(f"{module}.{attribute}"))
    elif name in ("REDUCE", "NEWOBJ"):
      arguments, what = stack.pop(), stack.pop()
      within(sum(len(x) for x in arguments if isinstance(x, _SIZED)))
      stack.append(call(_checked(what, Global), _checked(arguments, tuple)))
    elif name == "BUILD":
      state = stack.pop()
      if isinstance(stack[-1], Module):
        within(len(_checked(state, dict)))
        stack[-1].update(state)
      else:
        _checked(stack[-1], dict)  # torch hangs versions on a dict
    elif name == "BINPERSID":
      stack.append(persistent(stack.pop()))
    elif name == "STOP":
      return stack.pop()
    elif name not in ("PROTO", "FRAME"):
      raise Refused(f"the operation {name}")
  raise Refused("a pickle without an end")


def keys(values):
  """Values that may be keys of dicts and members of sets: of a tuple of tuples of tuples … no hash
  is ever done, nor of numbers that are long, which would take time each, or be equal by intent.
  """
  for value in values:
    if not isinstance(value, _KEYS):
      raise Refused(f"a {type(value).__name__} as a key")
    if isinstance(value, int) and value.bit_length() > 64:
      raise Refused("a number of more than 64 bits as a key")
  return values


def _checked(value, kind):
  if not isinstance(value, kind):
    raise Refused(f"{type(value).__name__} where a {kind.__name__} belongs")
  return value
