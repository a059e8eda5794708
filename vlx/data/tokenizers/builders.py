"""Vocabularies without rules of their own, as tokenizers of the library: BERT's words, GPT-2's merges
in GGUF, SentencePiece's pieces beside what transformers says of them.
"""

import pathlib
from collections.abc import Sequence

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, processors

from vlx.core.errors import UserError
from vlx.data.tokenizers import pieces as sentencepiece
from vlx.data.tokenizers.beside import Beside, mark_special

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

# Classes of transformers' that read these files as vlx does, each with and without "Fast".
_OF_PIECES = ("LlamaTokenizer", "CodeLlamaTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
_OF_WORDS = (
  "BertTokenizer",
  "DistilBertTokenizer",
  "ElectraTokenizer",
  "MobileBertTokenizer",
  "PreTrainedTokenizer",
  "TokenizersBackend",
)
_fast = lambda names: (*names, *(f"{name}Fast" for name in names))


def by_merges(
  tokens: Sequence[str], kinds: Sequence[int], merges: Sequence[str], words: str | None
) -> tokenizers.Tokenizer:
  """GPT-2's byte-level BPE, its words split as llama.cpp's name says."""
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
  sentencepiece.add_by_kind(backend, tokens, kinds)
  return backend


def between(backend: tokenizers.Tokenizer, start: str | None, end: str | None) -> None:
  """Puts these tokens before and behind each text."""
  around = {word: backend.token_to_id(word) for word in (start, end) if word is not None}
  if missing := [word for word, number in around.items() if number is None]:
    raise UserError(f"the vocabulary has no {missing[0]!r}, which begins or ends its texts")
  before, behind = ([word] if word is not None else [] for word in (start, end))
  backend.post_processor = processors.TemplateProcessing(
    single=[*before, "$A", *behind],
    pair=[*before, "$A", *behind, *(f"{w}:1" for w in before), "$B:1", *(f"{w}:1" for w in behind)],
    special_tokens=list(around.items()),
  )


def by_pieces(file: pathlib.Path, beside: Beside, chats: bool) -> tokenizers.Tokenizer:
  """LLaMA's, of a `tokenizer.model`; `chats`: whether a chat template is beside it."""
  beside.must_be("tokenizer_class", *_fast(_OF_PIECES))
  beside.must_be("sp_model_kwargs", {})
  model = sentencepiece.parse(file.read_bytes())
  vocabulary = beside.extended({piece.text: i for i, piece in enumerate(model.pieces)})
  backend = sentencepiece.by_pieces(
    model.pieces,
    bool(beside.option("add_prefix_space", model.space_first)),
    after_special=bool(beside.option("legacy", True)),
    vocabulary=vocabulary,
  )
  beside.add_to(backend, chats)
  between(
    backend,
    beside.names.get("bos_token", "<s>") if beside.option("add_bos_token", True) else None,
    beside.names.get("eos_token", "</s>") if beside.option("add_eos_token", False) else None,
  )
  return backend


def by_words(file: pathlib.Path, beside: Beside, chats: bool) -> tokenizers.Tokenizer:
  """BERT's, of a `vocab.txt`; of a vocabulary without capitals where nothing says so, in lower
  case.
  """
  beside.must_be("tokenizer_class", *_fast(_OF_WORDS))
  beside.must_be("wordpieces_prefix", "##")
  special = {
    name: beside.names.get(name, f"[{name.removesuffix('_token').upper()}]")
    for name in ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
  }
  # with an end of line behind the last word, and without
  lines = file.read_text("utf-8").removesuffix("\n").split("\n")
  vocabulary = {word: i for i, word in enumerate(lines)}
  needed = [special[name] for name in ("unk_token", "cls_token", "sep_token")]
  if missing := [word for word in needed if word not in vocabulary]:
    raise UserError(f"{file} is no vocabulary of BERT: it has no {', '.join(missing)}")
  cased = any(word != word.lower() for word in vocabulary if not word.startswith("["))
  vocabulary = beside.extended(vocabulary)
  _check_never_split(beside, {*special.values(), *(t.content for t in beside.added.values())})
  unknown, start, end = needed
  backend = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token=unknown))
  lower = beside.option("do_lower_case", not cased)
  chinese, accents = (
    beside.option("tokenize_chinese_chars", True),
    beside.option("strip_accents", None),
  )
  if beside.option("do_basic_tokenize", True):
    backend.normalizer = normalizers.BertNormalizer(True, chinese, accents, lower)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  else:
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
  backend.decoder = decoders.WordPiece("##")
  backend.post_processor = processors.BertProcessing(
    (end, vocabulary[end]), (start, vocabulary[start])
  )
  mark_special(backend, special.values())
  beside.add_to(backend, chats)
  return backend


def _check_never_split(beside: Beside, kept: set[str]) -> None:
  """Special and added tokens are never split anyway; other words would need another splitter."""
  words = beside.config.get("never_split") or ()
  if isinstance(words, str) or not all(isinstance(w, str) and w in kept for w in words):
    raise UserError(
      f"{beside.folder / 'tokenizer_config.json'}: never_split is {words!r}; vlx keeps special and"
      " added tokens whole, and no other words"
    )
