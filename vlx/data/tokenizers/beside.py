"""What the files beside a vocabulary say: tokens that were added to it, and which have a meaning.

`tokenizer_config.json`, `special_tokens_map.json`, `added_tokens.json` and `generation_config.json`,
as transformers writes them.
"""

import pathlib
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import tokenizers

from vlx.core import files
from vlx.core.errors import UserError
from vlx.data.tokenizers.rust import LARGEST_ID, PLACEHOLDERS

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_CONTROL = re.compile(r"<\|.*\|>")
_DIGITS = 9  # of an id; Python makes no number of thousands of them
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


class Beside(NamedTuple):
  """The files beside a vocabulary."""

  folder: pathlib.Path
  config: Mapping[str, Any]  # tokenizer_config.json
  names: Mapping[str, str]  # "bos_token" → its text, …
  added: Mapping[int, tokenizers.AddedToken]
  stop_ids: frozenset[int]  # that generation_config.json names

  def option(self, name: str, default: bool | None) -> bool | None:
    """True or false, or the default where the file says nothing or null.

    Raises:
      UserError: for anything else.
    """
    value = self.config.get(name)
    if value is not None and type(value) is not bool:
      raise UserError(
        f"{self.folder / 'tokenizer_config.json'}: {name} is {value!r}, not a boolean"
      )
    return default if value is None else value

  def must_be(self, name: str, *values: Any) -> None:
    """For what changes ids and vlx supports at these values alone, and where nothing is said."""
    if (value := self.config.get(name)) is not None and value not in values:
      raise UserError(
        f"{self.folder / 'tokenizer_config.json'}: {name} is {value!r}, which vlx does not support"
      )

  def extended(self, vocabulary: Mapping[str, int]) -> dict[str, int]:
    """A vocabulary with the added tokens.

    Raises:
      UserError: where one has another id there, or its id is another word's.
    """
    word_of = {i: word for word, i in vocabulary.items()}
    for number, token in self.added.items():
      if word_of.get(number, token.content) != token.content:
        raise UserError(
          f"{self.folder}: the id {number} is of {token.content!r}, an added token, and of"
          f" {word_of[number]!r} in the vocabulary"
        )
      if vocabulary.get(token.content, number) != number:
        raise UserError(
          f"{self.folder}: the added token {token.content!r} has the id {number}, and"
          f" {vocabulary[token.content]} in the vocabulary"
        )
    whole = {**vocabulary, **{token.content: number for number, token in self.added.items()}}
    if (largest := max(whole.values(), default=0)) > LARGEST_ID:
      raise UserError(f"{self.folder}: a token has the id {largest}, which no vocabulary reaches")
    return whole

  def add_to(self, backend: tokenizers.Tokenizer, chats: bool = False) -> None:
    """Makes the backend search texts for the added tokens, whose ids its vocabulary has.

    What is called special is what no text may write, but people call so too the words that they add
    for their texts. So without a chat template only a token with a part to play, or one that is
    written as a control token, is special.
    """
    parts = {text for name, text in self.names.items() if name in NAMES}
    for number, token in sorted(self.added.items()):
      if not chats and number not in self.stop_ids and token.content not in parts:
        token.special = token.special and bool(_CONTROL.fullmatch(token.content))
      (backend.add_special_tokens if token.special else backend.add_tokens)([token])
      if (found := backend.token_to_id(token.content)) != number:
        raise UserError(
          f"{self.folder}: the added token {token.content!r} has the id {number}, and {found} in the"
          " vocabulary"
        )
    mark_special(backend, parts)


def mark_special(backend: tokenizers.Tokenizer, words: Iterable[str]) -> None:
  """Those of the words that the vocabulary has become special tokens."""
  added = {token.content: token for token in backend.get_added_tokens_decoder().values()}
  for word in words:
    if backend.token_to_id(word) is None or word in PLACEHOLDERS:
      continue
    if word in added and added[word].special:
      continue
    flags = {name: getattr(added.get(word), name, False) for name in _FLAGS}
    backend.add_special_tokens([tokenizers.AddedToken(word, special=True, **flags)])


def read(folder: pathlib.Path, known: Mapping[str, Any] = {}) -> Beside:
  """What a folder's files say; of those that are not there, nothing.

  Args:
    folder: theirs.
    known: added tokens of the vocabulary's own file, by their ids, as objects of JSON.

  Raises:
    UserError: for a file that is damaged, and for two that contradict each other.
  """
  config = read_object(folder / "tokenizer_config.json")
  tokens = read_object(folder / "special_tokens_map.json")
  names = {
    name: _text(folder, name, given[name])
    for given in (tokens, config)
    for name in NAMES
    if given.get(name) is not None
  }
  special = set(names.values())
  for given in (tokens, config):
    for key in ("additional_special_tokens", "extra_special_tokens"):
      more = given.get(key)
      if isinstance(more, Mapping):  # under names of their own, which templates know them by
        named = {name: _text(folder, key, token) for name, token in more.items()}
        names |= named
        special |= set(named.values())
      elif isinstance(more, list):
        special |= {_text(folder, key, token) for token in more}
      elif more is not None:
        raise UserError(f"{folder}: {key} is {more!r}, no list of tokens")
  stops = read_object(folder / "generation_config.json").get("eos_token_id")
  stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
  if any(type(i) is not int or not 0 <= i <= LARGEST_ID for i in stops):
    raise UserError(f"{folder / 'generation_config.json'}: eos_token_id is {stops!r}, no ids")
  return Beside(folder, config, names, _added(folder, config, special, known), frozenset(stops))


def _added(folder, config, special, known) -> dict[int, tokenizers.AddedToken]:
  decoder = config.get("added_tokens_decoder")
  decoder = {} if decoder is None else decoder
  if not isinstance(decoder, Mapping):
    raise UserError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder is no object")
  added = {}
  for number, token in (*known.items(), *decoder.items()):
    if not number.isdecimal() or len(number) > _DIGITS or not isinstance(token, Mapping):
      raise UserError(
        f"{folder / 'tokenizer_config.json'}: added_tokens_decoder says {token!r} of {number!r}"
      )
    text = _text(folder, "added_tokens_decoder", token)
    flags = {name: token.get(name, False) for name in (*_FLAGS, "special")}
    if any(type(flag) is not bool for flag in flags.values()):
      raise UserError(
        f"{folder / 'tokenizer_config.json'}: {text!r} has flags that are no booleans"
      )
    flags["special"] = (flags["special"] or text in special) and text not in PLACEHOLDERS
    if int(number) in added and added[int(number)].content != text:
      raise UserError(f"{folder}: two files give the id {number} to different tokens")
    added[int(number)] = tokenizers.AddedToken(text, **flags)
  texts = {token.content: number for number, token in added.items()}
  if len(texts) < len(added):
    raise UserError(f"{folder / 'tokenizer_config.json'}: added_tokens_decoder has a token twice")
  for text, number in read_object(folder / "added_tokens.json").items():
    if type(number) is not int or number < 0:
      raise UserError(f"{folder / 'added_tokens.json'}: {text!r} has the id {number!r}")
    _text(folder, "added_tokens.json", text)
    here = added.get(number)
    if texts.get(text, number) != number or here and here.content != text:
      raise UserError(f"{folder}: two files give {text!r}, or the id {number}, another meaning")
    if here is None:
      texts[text] = number
      is_special = text in special and text not in PLACEHOLDERS
      added[number] = tokenizers.AddedToken(text, special=is_special, normalized=not is_special)
  return added


def _text(folder, name, token: Any) -> str:
  """A token in a file of JSON: its text, or an object that has it."""
  text = token.get("content") if isinstance(token, Mapping) else token
  if not isinstance(text, str) or not text or text != text.encode(errors="replace").decode():
    raise UserError(f"{folder}: {name} is {token!r}, no token")
  return text


def read_object(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file, {} where it is not there."""
  return files.read_json(file) if file.exists() else {}
