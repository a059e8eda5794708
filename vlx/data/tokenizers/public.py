"""Tokenizers of public checkpoints, and their chat templates.

Read are `tokenizer.json`, SentencePiece's `tokenizer.model` (BPE, as LLaMA's), BERT's `vocab.txt`,
and what GGUF files have in their metadata. All become tokenizers of the library `tokenizers`.
"""

import datetime
import functools
import json
import pathlib
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from tokenizers import (
  Regex,
  decoders,
  implementations,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from vlx.core import files
from vlx.core.errors import UserError
from vlx.data.tokenizers.trained import shortened

Messages = Sequence[Mapping[str, str]]  # {"role": "user", "content": "…"}

# Kinds of pieces, in SentencePiece's files (sentencepiece_model.proto) and in GGUF's.
_CONTROL, _USER_DEFINED = 3, 4

# llama.cpp's names for how words are split before BPE (its `convert_hf_to_gguf.py`).
_LLAMA_3_WORDS = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
_WORDS = {
  "gpt-2": _BYTES,
  "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _BYTES]),
  "llama-bpe": pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(_LLAMA_3_WORDS), behavior="isolated"),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  ),
}

# What ends a turn in the models that GGUF files hold; their metadata name only one such token.
_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")


class PublicTokenizer:
  """Text → ids, with the start and end tokens that its model was trained with, and back.

  Attributes:
    stop_ids: tokens that end a generated text.
    has_chat: whether `chat` can be asked.
  """

  def __init__(
    self,
    backend: tokenizers.Tokenizer,
    stop_ids: Iterable[int] = (),
    template: str | None = None,
    words: Mapping[str, str] = {},
  ):
    """Wraps a backend whose post-processor adds the special tokens.

    Args:
      backend: of the library.
      stop_ids: see above.
      template: Jinja's source of the chat template.
      words: `bos_token` and `eos_token`, for the template.
    """
    backend.no_padding()
    backend.no_truncation()
    self._backend = backend
    token = lambda *names: next((i for i in map(backend.token_to_id, names) if i is not None), None)
    self.start_id = token(words.get("bos_token", "[CLS]"), "[CLS]")
    self.end_id = token(words.get("eos_token", "[SEP]"), "[SEP]")
    self.stop_ids = tuple(sorted(set(stop_ids)))
    self.has_chat = template is not None
    self._template, self._words = template, dict(words)

  @functools.cached_property
  def vocab_size(self) -> int:
    """The size that a model's vocabulary must have: one more than the largest id."""
    return 1 + max(self._backend.get_vocab().values())

  def tokens(self, text: str) -> list[int]:
    """All ids of a text, special ones and all."""
    return self._backend.encode(text).ids

  def encode(
    self, text: str, length: int, *, dropout: float = 0.0, rng: np.random.Generator | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """(ids i32 `[length]`, mask bool `[length]`): zeros under a False mask follow the text.

    A text that is too long loses its last tokens, never the special ones.

    Raises:
      UserError: for `dropout`, which the backend's own merges do not take.
    """
    del rng
    if dropout:
      raise UserError(
        "tokenize(…, dropout=…) is for the BPE that a run trains, not for a public tokenizer"
      )
    found = self._backend.encode(text, add_special_tokens=False)
    found.truncate(length - self._backend.num_special_tokens_to_add(False))
    tokens = self._backend.post_process(found).ids
    ids = np.zeros(length, np.int32)
    ids[: len(tokens)] = tokens
    return ids, np.arange(length) < len(tokens)

  def encode_pair(
    self, first: str, second: str, length: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, mask, segments), `[length]` each, with the special tokens that the model knows pairs by."""
    plain = [self._backend.encode(text, add_special_tokens=False) for text in (first, second)]
    room = length - self._backend.num_special_tokens_to_add(True)
    kept = shortened(*(list(found.ids) for found in plain), room)
    for found, ids in zip(plain, kept):
      found.truncate(len(ids))
    both = self._backend.post_process(*plain)
    ids, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    ids[: len(both.ids)], segments[: len(both.ids)] = both.ids, both.type_ids
    return ids, np.arange(length) < len(both.ids), segments

  def encode_batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids `[N, length]`, mask `[N, length]`)."""
    ids, masks = zip(*(self.encode(text, length) for text in texts))
    return np.stack(ids), np.stack(masks)

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids, without special tokens."""
    return self._backend.decode([int(i) for i in ids if 0 <= int(i) < self.vocab_size])

  def save(self, path: pathlib.Path) -> None:
    """The library's JSON beside what vlx knows of it."""
    content = {
      "backend": json.loads(self._backend.to_str()),
      "stop_ids": self.stop_ids,
      "template": self._template,
      "words": self._words,
    }
    files.write(path, json.dumps(content, ensure_ascii=False))

  def __reduce__(self):
    return type(self), (self._backend, self.stop_ids, self._template, self._words)

  def chat(self, messages: Messages) -> list[int]:
    """Ids of a conversation up to where the assistant's answer begins, by the model's own template.

    Raises:
      UserError: where the template does not render: it is a stranger's program, and runs in a
        sandbox.
    """
    return self.chat_ids(messages, answering=True)

  def chat_ids(self, messages: Messages, *, answering: bool) -> list[int]:
    """Ids of a conversation; where `answering`, up to where the assistant's answer begins."""
    return self._backend.encode(
      self.render(messages, answering=answering), add_special_tokens=False
    ).ids

  def tokens_of(self, text: str) -> list[int]:
    """Ids of a text inside of another, without special tokens."""
    return self._backend.encode(text, add_special_tokens=False).ids

  def render(self, messages: Messages, *, answering: bool = True) -> str:
    """The text of `chat_ids`."""
    import jinja2.sandbox  # here, for few models chat

    def refuse(message):
      raise jinja2.TemplateError(message)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
      trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda x, indent=None: json.dumps(
      x, ensure_ascii=False, indent=indent
    )
    environment.globals |= dict(
      raise_exception=refuse, strftime_now=lambda form: datetime.datetime.now().strftime(form)
    )
    try:
      return environment.from_string(self._template).render(
        messages=messages, add_generation_prompt=answering, **self._words
      )
    except Exception as e:  # whatever a template may do
      raise UserError(f"the model's chat template does not render: {type(e).__name__}: {e}") from e


def from_saved(content: Mapping[str, Any]) -> PublicTokenizer:
  """Reads a folder that `PublicTokenizer.save` wrote."""
  backend = tokenizers.Tokenizer.from_str(json.dumps(content["backend"]))
  return PublicTokenizer(backend, content["stop_ids"], content["template"], content["words"])


def check_fits(tokenizer: PublicTokenizer, vocab_size: int) -> None:
  """A tokenizer with more words than its model is another model's: a UserError."""
  if tokenizer.vocab_size > vocab_size:
    raise UserError(
      f"the tokenizer has {tokenizer.vocab_size} tokens but the model {vocab_size}: they do not belong together"
    )


def load(path: str | pathlib.Path) -> PublicTokenizer | None:
  """The tokenizer of a folder, or of one file of it; None where a folder has none.

  Raises:
    UserError: for a file that cannot be read, that is damaged or of a kind that vlx does not know.
  """
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  names = ("tokenizer.json", "tokenizer.model", "vocab.txt") if path.is_dir() else (path.name,)
  file = next((folder / name for name in names if (folder / name).is_file()), None)
  if file is None:
    if path.is_dir():
      return None
    raise UserError(f"no file {path}")
  config = _json(folder / "tokenizer_config.json")
  try:
    match file.suffix:
      case ".json":
        backend = tokenizers.Tokenizer.from_file(str(file))
      case ".model":
        pieces = list(_sentence_pieces(file.read_bytes()))
        backend = _by_pieces(pieces)
        if config.get("add_bos_token", True):
          _start_with(backend, next(i for i, p in enumerate(pieces) if p.text == "<s>"))
      case ".txt":
        backend = _word_pieces(file, config)
      case suffix:
        raise UserError(f"{file}: no tokenizer that vlx knows ends in {suffix!r}")
  except OSError as e:
    raise UserError(f"cannot read {file}: {e.strerror}") from e
  except UserError:
    raise
  except Exception as e:  # the library raises nothing more special
    raise UserError(f"{file} is no tokenizer that vlx can read: {e}") from e

  words = {
    name: _content(config.get(name)) for name in ("bos_token", "eos_token") if config.get(name)
  }
  if file.suffix == ".model":
    words = {"bos_token": "<s>", "eos_token": "</s>"} | words
  stops = _json(folder / "generation_config.json").get("eos_token_id", [])
  stops = {i for i in (stops if isinstance(stops, list) else [stops]) if type(i) is int}
  if (end := backend.token_to_id(words.get("eos_token", ""))) is not None:
    stops.add(end)
  return PublicTokenizer(backend, stops, _template(folder, config), words)


def from_gguf(metadata: Mapping[str, Any]) -> PublicTokenizer | None:
  """The tokenizer in a GGUF file's metadata, `tokenizer.ggml.…`; None where there is none.

  Raises:
    UserError: where it is damaged or of a kind that vlx does not know.
  """
  told = {
    name.removeprefix("tokenizer.ggml."): value
    for name, value in metadata.items()
    if name.startswith("tokenizer.ggml.")
  }
  if "model" not in told:
    return None
  try:
    tokens, kinds = told["tokens"], told.get("token_type", [1] * len(told["tokens"]))
    match told["model"]:
      case "llama":
        pieces = [Piece(*piece) for piece in zip(tokens, told["scores"], kinds, strict=True)]
        backend = _by_pieces(pieces, told.get("add_space_prefix", True))
      case "gpt2":
        backend = _by_merges(tokens, kinds, told["merges"], told.get("pre"))
      case other:
        raise UserError(f"a GGUF tokenizer of the kind {other!r}; vlx reads 'llama' and 'gpt2'")
    start = told.get("bos_token_id")
    if told.get("add_bos_token", told["model"] == "llama"):
      _start_with(backend, start)
    ends = [told[name] for name in ("eos_token_id", "eot_token_id") if name in told]
    words = {
      name: tokens[told[key]]
      for name, key in (("bos_token", "bos_token_id"), ("eos_token", "eos_token_id"))
      if key in told
    }
  except UserError:
    raise
  except Exception as e:
    raise UserError(f"the GGUF file's tokenizer is damaged: {type(e).__name__}: {e}") from e
  ends += [i for i in map(backend.token_to_id, _ENDS) if i is not None]
  return PublicTokenizer(backend, ends, metadata.get("tokenizer.chat_template"), words)


class Piece(NamedTuple):
  """A word of SentencePiece's vocabulary."""

  text: str
  score: float
  kind: int  # 1 normal, 2 unknown, 3 control, 4 user defined, 6 byte


def _by_pieces(pieces: Sequence[Piece], space_first: bool = True) -> tokenizers.Tokenizer:
  """SentencePiece's BPE: of two neighbours that make a word, those of the highest score are joined
  first.

  `tokenizers` wants pairs in the order of joining: every way to cut a word in two, by the word's
  score.
  """
  ids = {piece.text: i for i, piece in enumerate(pieces)}
  pairs = [
    (-piece.score, ids[piece.text[:i]], ids[piece.text[i:]], piece.text[:i], piece.text[i:])
    for piece in pieces
    if piece.kind == 1
    for i in range(1, len(piece.text))
    if piece.text[:i] in ids and piece.text[i:] in ids
  ]
  merges = [pair[3:] for pair in sorted(pairs)]
  unknown = next(piece.text for piece in pieces if piece.kind == 2)
  backend = tokenizers.Tokenizer(
    models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
  )
  prefix = [normalizers.Prepend("▁")] if space_first else []
  backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
  strip = [decoders.Strip(" ", 1, 0)] if space_first else []
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  _add_special(backend, [piece.text for piece in pieces], [piece.kind for piece in pieces])
  return backend


def _by_merges(tokens, kinds, merges, words) -> tokenizers.Tokenizer:
  """GPT-2's byte-level BPE."""
  if words not in _WORDS:
    raise UserError(
      f"a GGUF tokenizer that splits words by {words!r}; vlx knows {', '.join(_WORDS)}"
    )
  backend = tokenizers.Tokenizer(
    models.BPE(
      {token: i for i, token in enumerate(tokens)},
      [tuple(merge.split(" ")) for merge in merges],
      ignore_merges=words == "llama-bpe",
    )
  )
  backend.pre_tokenizer, backend.decoder = _WORDS[words], decoders.ByteLevel()
  _add_special(backend, tokens, kinds)
  return backend


def _add_special(
  backend: tokenizers.Tokenizer, tokens: Sequence[str], kinds: Sequence[int]
) -> None:
  """Tokens that a text is searched for before it is split."""
  added = lambda kind: [
    tokenizers.AddedToken(t, normalized=False, special=kind == _CONTROL)
    for t, k in zip(tokens, kinds, strict=True)
    if k == kind
  ]
  backend.add_special_tokens(added(_CONTROL))
  backend.add_tokens(added(_USER_DEFINED))


def _start_with(backend: tokenizers.Tokenizer, start: int) -> None:
  word = backend.id_to_token(start)
  backend.post_processor = processors.TemplateProcessing(
    single=[word, "$A"], special_tokens=[(word, start)]
  )


def _word_pieces(file: pathlib.Path, config: Mapping[str, Any]) -> tokenizers.Tokenizer:
  """BERT's; of a vocabulary without capitals where nothing says so, in lower case."""
  vocabulary = {word: i for i, word in enumerate(file.read_text("utf-8").splitlines())}
  if missing := [w for w in ("[UNK]", "[CLS]", "[SEP]") if w not in vocabulary]:
    raise UserError(f"{file} is no vocabulary of BERT: it has no {', '.join(missing)}")
  cased = any(word != word.lower() for word in vocabulary if not word.startswith("["))
  return implementations.BertWordPieceTokenizer(
    vocabulary, lowercase=bool(config.get("do_lower_case", not cased))
  )._tokenizer


def _sentence_pieces(data: bytes) -> Iterator[Piece]:
  """Parses a `tokenizer.model`, SentencePiece's ModelProto: the pieces, and then how they were
  trained.
  """
  kind = None
  for field, value in _protobuf(data):
    if field == 1:
      piece = {1: b"", 2: b"\0" * 4, 3: 1} | dict(_protobuf(value))
      yield Piece(piece[1].decode(), *struct.unpack("<f", piece[2]), piece[3])
    elif field == 2:
      kind = dict(_protobuf(value)).get(3, 1)
  if kind is None:
    raise ValueError("it ends too early")
  if kind != 2:
    raise ValueError(f"a SentencePiece model of type {kind}; vlx reads BPE (2) only")


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
  """(field number, value) of a message: a whole number, or the bytes of anything else."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while True:
      byte = data[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value

  while at < len(data):
    key = varint()
    if key & 7 == 0:
      yield key >> 3, varint()
      continue
    size = {1: 8, 5: 4}[key & 7] if key & 7 != 2 else varint()
    if at + size > len(data):
      raise ValueError("it ends too early")
    yield key >> 3, data[at : at + size]
    at += size


def _json(file: pathlib.Path) -> dict[str, Any]:
  """The object in a JSON file, {} where it is not there."""
  if not file.is_file():
    return {}
  try:
    found = json.loads(file.read_text("utf-8"))
  except ValueError as e:
    raise UserError(f"{file} is not JSON: {e}") from e
  if not isinstance(found, dict):
    raise UserError(f"{file} holds no JSON object")
  return found


def _content(token: Any) -> str:
  """A special token in a `tokenizer_config.json`: its text, or an object that has it."""
  return token["content"] if isinstance(token, dict) else token


def _template(folder: pathlib.Path, config: Mapping[str, Any]) -> str | None:
  """Beside the configuration, or in it: as a text, or as several under names."""
  if (file := folder / "chat_template.jinja").is_file():
    return file.read_text("utf-8")
  found = config.get("chat_template")
  if isinstance(found, list):
    found = {t["name"]: t["template"] for t in found}.get("default")
  return found
