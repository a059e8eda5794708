"""SentencePiece's models of the type BPE, LLaMA's `tokenizer.model` among them, as tokenizers of the
library.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from vlx.core.errors import UserError

# Kinds of pieces, in SentencePiece's files (sentencepiece_model.proto) and in GGUF's.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4

# The trainer's limit is 16 unless it is told otherwise; a piece is cut in two at each of its letters.
LONGEST_PIECE = 1000


class Piece(NamedTuple):
  """A word of SentencePiece's vocabulary."""

  text: str
  score: float
  kind: int  # 1 normal, 2 unknown, 3 control, 4 user defined, 6 byte


class Model(NamedTuple):
  """A `tokenizer.model`."""

  pieces: list[Piece]
  space_first: bool  # whether a text begins with a space that it does not have


def by_pieces(
  pieces: Sequence[Piece],
  space_first: bool = True,
  *,
  after_special: bool = True,
  vocabulary: dict[str, int] | None = None,
) -> tokenizers.Tokenizer:
  """SentencePiece's BPE: of two neighbours that make a word, those of the highest score are joined
  first.

  `tokenizers` wants pairs in the order of joining: every way to cut a word in two, by the word's
  score.

  Args:
    pieces: of the model.
    space_first: whether a text begins with a space that it does not have.
    after_special: whether what follows a special token does so too.
    vocabulary: id of each word, where there are more than the pieces.

  Raises:
    UserError: for a piece that is too long to be one.
  """
  ids = {piece.text: i for i, piece in enumerate(pieces)}
  if len(longest := max(ids, key=len, default="")) > LONGEST_PIECE:
    raise UserError(f"a piece of {len(longest)} letters: vlx reads up to {LONGEST_PIECE}")
  pairs = [
    (-piece.score, ids[piece.text[:i]], ids[piece.text[i:]], piece.text[:i], piece.text[i:])
    for piece in pieces
    if piece.kind == NORMAL
    for i in range(1, len(piece.text))
    if piece.text[:i] in ids and piece.text[i:] in ids
  ]
  merges = [pair[3:] for pair in sorted(pairs)]
  unknown = next((piece.text for piece in pieces if piece.kind == UNKNOWN), None)
  if unknown is None:
    raise UserError("no piece stands for what is unknown")
  backend = tokenizers.Tokenizer(
    models.BPE(vocabulary or ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True)
  )
  if after_special:
    prefix = [normalizers.Prepend("▁")] if space_first else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", "▁")])
  else:
    backend.pre_tokenizer = pre_tokenizers.Metaspace(
      "▁", prepend_scheme="first" if space_first else "never", split=False
    )
  strip = [decoders.Strip(" ", 1, 0)] if space_first else []
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
  )
  add_by_kind(backend, [piece.text for piece in pieces], [piece.kind for piece in pieces])
  return backend


def add_by_kind(backend: tokenizers.Tokenizer, tokens: Sequence[str], kinds: Sequence[int]) -> None:
  """Tokens that a text is searched for before it is split."""
  added = lambda kind: [
    tokenizers.AddedToken(t, normalized=False, special=kind == CONTROL)
    for t, k in zip(tokens, kinds, strict=True)
    if k == kind
  ]
  backend.add_special_tokens(added(CONTROL))
  backend.add_tokens(added(USER_DEFINED))


def parse(data: bytes) -> Model:
  """Parses a `tokenizer.model`, SentencePiece's ModelProto.

  Raises:
    ValueError, IndexError: where it is damaged, of another type than BPE, or rewrites texts by more
      than marking their spaces.
  """
  pieces, kind, rules = [], None, {}
  for field, value in _protobuf(data):
    if field == 1:
      piece = {1: b"", 2: b"\0" * 4, 3: 1} | dict(_protobuf(value))
      pieces.append(Piece(piece[1].decode(), *struct.unpack("<f", piece[2]), piece[3]))
    elif field == 2:
      kind = dict(_protobuf(value)).get(3, 1)
    elif field == 3:
      rules = dict(_protobuf(value))
  if kind is None:
    raise ValueError("it ends too early")
  if kind != 2:
    raise ValueError(f"a SentencePiece model of type {kind}; vlx reads BPE (2) only")
  # normalizer_spec: the rules of Unicode, whether a space is put first, spaces joined, spaces marked
  if rules and (rules.get(2) or rules.get(4, 1) or not rules.get(5, 1)):
    raise ValueError("it normalizes texts, and vlx reads models that take them as they are")
  return Model(pieces, bool(rules.get(3, 1)))


def _protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
  """(field number, value) of a message: a whole number, or the bytes of anything else."""
  at = 0

  def varint() -> int:
    nonlocal at
    value = shift = 0
    while shift < 70:
      byte = data[at]
      at += 1
      value |= (byte & 127) << shift
      shift += 7
      if byte < 128:
        return value
    raise ValueError("a number in it has no end")

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
