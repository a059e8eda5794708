"""The one door to the library `tokenizers`, which is written in Rust: what it says of a file becomes
one line, and what it would take in silence is refused.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import tokenizers

from vlx.core.errors import UserError

# What stands for an image in what people say, by the convention of LLaVA's files: a word of theirs.
PLACEHOLDERS = frozenset({"<image>"})

# The library makes a list of all ids up to the largest that have no word.
LARGEST_ID = 2**24


@contextlib.contextmanager
def told(what: str) -> Iterator[None]:
  """Makes any failure a `UserError` that begins with `what`.

  A panic of Rust's comes as an exception that is no `Exception`, of a class that has no public name.
  """
  try:
    yield
  except UserError:
    raise
  except BaseException as e:
    if not isinstance(e, Exception) and type(e).__name__ != "PanicException":
      raise
    said = " ".join(str(e).split())[:300]
    raise UserError(f"{what}: {type(e).__name__}{': ' + said if said else ''}") from e


def from_json(content: Any, what: str) -> tokenizers.Tokenizer:
  """The tokenizer of the library's own JSON.

  Raises:
    UserError: beginning with `what`, for what is none, and where its parts give a token different
      ids.
  """
  with told(what):
    if not isinstance(content, Mapping):
      raise UserError(f"{what}: it is no object of JSON")
    for token in content.get("added_tokens") or ():
      token["special"] = token["special"] and token["content"] not in PLACEHOLDERS
    _check_prefix(content["model"], what)
    backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    check_ids(content, backend, what)
  return backend


def _check_prefix(model: Mapping[str, Any], what: str) -> None:
  """The library cuts the prefix off the second word of each merge without a look at it, and may die of
  it.
  """
  prefix = model.get("continuing_subword_prefix")
  if model.get("type", "BPE") == "BPE" and prefix:
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    if not all(second.startswith(prefix) for _, second in pairs):
      raise UserError(f"{what}: it merges words that do not begin with its prefix {prefix!r}")


def check_ids(content: Mapping[str, Any], backend: tokenizers.Tokenizer, what: str) -> None:
  """Refuses JSON whose words share an id, whose added tokens or post-processor name other ids than
  the vocabulary, and whose merges are left out at random.
  """
  model = content["model"]
  numbers = backend.get_vocab().values()
  if not numbers or max(numbers) > LARGEST_ID:
    raise UserError(f"{what}: its vocabulary is {'absurd' if numbers else 'empty'}")
  words = model.get("vocab")
  if isinstance(words, Mapping) and len(set(words.values())) < len(words):
    raise UserError(f"{what}: two words have the same id")
  if model.get("dropout"):
    raise UserError(f"{what}: it leaves out merges at random (dropout), which vlx does not")
  added = [(token["content"], token["id"]) for token in content.get("added_tokens") or ()]
  for word, number in (*added, *_of_processor(content.get("post_processor"))):
    if (found := backend.token_to_id(word)) != number:
      raise UserError(f"{what}: {word!r} has the id {number} in one place and {found} in another")


def _of_processor(processor: Mapping[str, Any] | None) -> Iterator[tuple[str, int]]:
  """The tokens that a post-processor puts around a text, and their ids."""
  match (processor or {}).get("type"):
    case "Sequence":
      for part in processor["processors"]:
        yield from _of_processor(part)
    case "TemplateProcessing":
      tokens = processor["special_tokens"]
      for token in tokens.values():
        yield from zip(token["tokens"], token["ids"], strict=True)
      for piece in (*processor["single"], *processor["pair"]):
        if any(part.get("type_id", 0) not in (0, 1) for part in piece.values()):
          raise ValueError("its template has segments beyond the first and the second text's")
        if (name := piece.get("SpecialToken", {}).get("id")) is not None and name not in tokens:
          raise ValueError(f"its template has {name!r}, and it does not say what that is")
    case "BertProcessing" | "RobertaProcessing":
      yield from (tuple(processor[name]) for name in ("sep", "cls"))
