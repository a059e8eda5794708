"""Tokenizers that a run trains: byte-level BPE as CLIP has it, or the whole words of the captioning
papers.

BPE is trained on a run's own captions, or has CLIP's published vocabulary.
Text is mended (ftfy), unescaped twice, lower-cased, its white space folded; words are split by
CLIP's pattern, written as bytes, and merged; the last symbol of a word carries "</w>". An encoded
text is start, tokens, end (openai/CLIP, simple_tokenizer.py and clip.py). There a text in which
"<|endoftext|>" is written has that token, at which CLIP takes its feature; here a text is text, and
its letters make no special token.

Words are lower-case, without punctuation, kept when they were seen often enough; any other is
"<unk>" (Vinyals et al., "Show and Tell", 2015, §4.3.1: seen at least five times).
"""

import collections
import functools
import gzip
import html
import json
import pathlib
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ftfy
import numpy as np
import tokenizers
from tokenizers import Regex, models, normalizers, pre_tokenizers, trainers

from vlx.core import files
from vlx.core.errors import UserError
from vlx.data.tokenizers import beside, rust

START, END = "<|startoftext|>", "<|endoftext|>"
UNKNOWN = "<unk>"
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
WHOLE_WORDS = r"[\p{L}\p{N}]+(?:['’][\p{L}\p{N}]+)*"
PUBLISHED_MERGES = 49152 - 256 - 2  # the vocabulary file holds more than CLIP uses

MAX_BYTES = 1 << 26  # of a vocabulary, unpacked
LONGEST_WORD = 256  # bytes that are merged with dropout together: its time is their square
CHARACTERS_PER_TOKEN = 100  # far above any text's mean: what is behind cannot reach the result


def clean(text: str) -> str:
  """Cleans a text as CLIP does before tokenizing."""
  if text.isascii() and text.isprintable() and "&" not in text:
    return text.strip()  # there is nothing to mend, and ftfy is slow to find that out
  return html.unescape(html.unescape(ftfy.fix_text(text))).strip()


class Tokenizer:
  """Text → fixed-length ids and their mask, and back."""

  def __init__(self, backend: tokenizers.Tokenizer):
    backend.encode_special_tokens = True  # as the text that they are
    self._backend = backend
    self.start_id = backend.token_to_id(START)
    self.end_id = backend.token_to_id(END)
    self.unknown_id = backend.token_to_id(UNKNOWN)
    self._added = {
      number: token.content
      for number, token in backend.get_added_tokens_decoder().items()
      if token.content not in (START, END)
    }
    # Captions come again every epoch, and cleaning one costs more than cropping an image.
    self._tokens = functools.lru_cache(maxsize=2**16)(
      lambda text: backend.encode(clean(text), add_special_tokens=False).ids
    )

  stop_ids = ()
  has_chat = False

  def __reduce__(self):
    return type(self), (self._backend,)

  @property
  def vocab_size(self) -> int:
    """One more than the largest id."""
    return self._largest + 1

  @functools.cached_property
  def _largest(self) -> int:
    return max(self._backend.get_vocab().values())

  def tokens_of(self, text: str) -> list[int]:
    """Ids of a text inside of another, without start and end."""
    return list(self._tokens(text))

  def tokens(self, text: str) -> list[int]:
    """Start, tokens, end."""
    return [self.start_id, *self._tokens(text), self.end_id]

  def id_of(self, token: str) -> int | None:
    """The id of one token by its name; None where there is none."""
    return self._backend.token_to_id(token)

  def encode(
    self, text: str, length: int, *, dropout: float = 0.0, rng: np.random.Generator | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """(ids i32 `[length]`, mask bool `[length]`): start, tokens, end, then zeros under a False mask.

    A text that is too long loses its last tokens, never the end token. With `dropout`, merges are
    left out at random (`merged`).
    """
    text = text[: CHARACTERS_PER_TOKEN * length]
    tokens = (self._dropped(text, dropout, rng) if dropout else self._tokens(text))[: length - 2]
    ids = np.zeros(length, np.int32)
    ids[: len(tokens) + 2] = [self.start_id, *tokens, self.end_id]
    return ids, np.arange(length) < len(tokens) + 2

  @functools.cached_property
  def _vocabulary(self) -> tuple[dict[str, int], dict[tuple[str, str], int]]:
    """(token → id, merge → rank)."""
    model = json.loads(self._backend.to_str())["model"]
    merges = (m.split(" ") if isinstance(m, str) else m for m in model["merges"])
    return model["vocab"], {tuple(merge): rank for rank, merge in enumerate(merges)}

  def _dropped(self, text: str, dropout: float, rng: np.random.Generator) -> list[int]:
    ids, ranks = self._vocabulary
    tokens = []
    for part in self._between_added.split(clean(text)):
      if part in self._added.values():
        tokens.append(self._backend.token_to_id(part))
        continue
      normal = self._backend.normalizer.normalize_str(part)
      for word, _ in self._backend.pre_tokenizer.pre_tokenize_str(normal):
        symbols = [*word[:-1], word[-1] + "</w>"]
        for first in range(0, len(symbols), LONGEST_WORD):
          part = merged(symbols[first : first + LONGEST_WORD], ranks, dropout, rng)
          tokens += [ids[symbol] for symbol in part]
    return tokens

  @functools.cached_property
  def _between_added(self) -> re.Pattern[str]:
    words = sorted(self._added.values(), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, words)) or '(?!)'})")

  def encode_pair(
    self, first: str, second: str, length: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, mask, segments), `[length]` each: start, first, end, second, end; then zeros."""
    one, two = shortened(self._tokens(first), self._tokens(second), length - 3)
    ids = np.zeros(length, np.int32)
    ids[: len(one) + len(two) + 3] = [self.start_id, *one, self.end_id, *two, self.end_id]
    position = np.arange(length)
    mask = position < len(one) + len(two) + 3
    return ids, mask, (mask & (position >= len(one) + 2)).astype(np.int32)

  def encode_batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids `[N, length]`, mask `[N, length]`)."""
    ids, masks = zip(*(self.encode(text, length) for text in texts))
    return np.stack(ids), np.stack(masks)

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids; start, end and what follows the end are dropped."""
    ids = [int(i) for i in ids]
    if self.end_id in ids:
      ids = ids[: ids.index(self.end_id)]
    byte_of = {symbol: byte for byte, symbol in _byte_symbols().items()}
    byte_of[" "] = ord(" ")
    said = b""
    for i in ids:
      if i in self._added:
        said += self._added[i].encode() + b" "
      elif i != self.start_id and 0 <= i < self.vocab_size:
        token = self._backend.id_to_token(i) or ""  # not every id need have a word
        said += bytes(byte_of[c] for c in token.replace("</w>", " "))
    return said.decode(errors="replace").strip()

  def save(self, path: pathlib.Path) -> None:
    files.write(path, self._backend.to_str(pretty=True))


class WordTokenizer(Tokenizer):
  """Whole words; its vocabulary is start, end, unknown, then words, the frequent ones first."""

  def decode(self, ids):
    ids = [int(i) for i in ids]
    if self.end_id in ids:
      ids = ids[: ids.index(self.end_id)]
    known = (i for i in ids if i != self.start_id and 0 <= i < self.vocab_size)
    words = (self._backend.id_to_token(i) for i in known)
    return " ".join(word for word in words if word is not None)


def shortened(first: list[int], second: list[int], room: int) -> tuple[list[int], list[int]]:
  """Both texts, the longer one without its last tokens where there is not room for both."""
  over = max(0, len(first) + len(second) - room)
  gap = len(first) - len(second)
  longer = min(over, abs(gap))  # first the longer one is cut to the other's length, then both alike
  rest = over - longer
  cut_first = (longer if gap > 0 else 0) + rest // 2
  cut_second = (longer if gap < 0 else 0) + rest - rest // 2
  return first[: len(first) - cut_first], second[: len(second) - cut_second]


def merged(
  symbols: list[str], ranks: dict[tuple[str, str], int], dropout: float, rng: np.random.Generator
) -> list[str]:
  """The symbols of a word merged by BPE; at each merge every candidate is left out with this
  probability.

  Provilkov et al., "BPE-Dropout", 2020, Algorithm 1.
  """
  while True:
    pairs = [(ranks[pair], i) for i, pair in enumerate(zip(symbols, symbols[1:])) if pair in ranks]
    kept = [pair for pair, drop in zip(pairs, rng.random(len(pairs)) < dropout) if not drop]
    if not kept:
      return symbols
    _, i = min(kept)
    symbols = [*symbols[:i], symbols[i] + symbols[i + 1], *symbols[i + 2 :]]


def _with_clip_rules(bpe: models.BPE) -> tokenizers.Tokenizer:
  backend = tokenizers.Tokenizer(bpe)
  backend.normalizer = normalizers.Sequence(
    [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
  )
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  return backend


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
  """Learns merges from texts: equal texts give equal tokenizers.

  The 512 symbols of a byte, at the end of a word or not, are in, so any text can be spelled.
  """
  backend = _with_clip_rules(models.BPE(end_of_word_suffix="</w>"))
  alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
  # Left to itself the trainer adds the "x</w>" that it meets, in the order of a hash table, and by
  # that order it breaks ties. As special tokens they have fixed places; below they are plain again.
  word_ends = [symbol + "</w>" for symbol in alphabet]
  trainer = trainers.BpeTrainer(
    vocab_size=vocab_size,
    initial_alphabet=alphabet,
    end_of_word_suffix="</w>",
    special_tokens=[START, END, *word_ends],
    show_progress=False,
  )
  backend.train_from_iterator((clean(t) for t in texts), trainer)
  state = json.loads(backend.to_str())
  state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in (START, END)]
  return Tokenizer(tokenizers.Tokenizer.from_str(json.dumps(state)))


def train_word_level(texts: Iterable[str], vocab_size: int, min_count: int) -> WordTokenizer:
  """The `vocab_size` - 3 most frequent words of those seen `min_count` times or more."""
  split = _word_rules(models.WordLevel({}, UNKNOWN))
  counts = collections.Counter()
  for text in texts:
    pieces = split.pre_tokenizer.pre_tokenize_str(split.normalizer.normalize_str(clean(text)))
    counts.update(word for word, _ in pieces)
  kept = sorted((w for w in counts if counts[w] >= min_count), key=lambda w: (-counts[w], w))
  vocabulary = [START, END, UNKNOWN, *kept][:vocab_size]
  backend = _word_rules(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, UNKNOWN))
  backend.add_special_tokens([START, END])
  return WordTokenizer(backend)


def collect_labels(texts: Iterable[str], vocab_size: int) -> WordTokenizer:
  """Whole texts, each a token: the names of classes, in alphabetical order behind the three special
  ones.

  Raises:
    UserError: where there are more than `vocab_size` in all.
  """
  vocabulary = [START, END, UNKNOWN, *sorted({text.strip() for text in texts})]
  if len(vocabulary) > vocab_size:
    raise UserError(
      f"{len(vocabulary) - 3} classes, more than the {vocab_size - 3} of tokenizer.vocab_size and num_classes"
    )
  return WordTokenizer(
    tokenizers.Tokenizer(models.WordLevel({name: i for i, name in enumerate(vocabulary)}, UNKNOWN))
  )


def _word_rules(model: models.WordLevel) -> tokenizers.Tokenizer:
  backend = tokenizers.Tokenizer(model)
  backend.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
  backend.pre_tokenizer = pre_tokenizers.Split(Regex(WHOLE_WORDS), behavior="removed", invert=True)
  return backend


def from_json(content: Mapping[str, Any], what: str) -> Tokenizer:
  """A tokenizer that `Tokenizer.save` wrote; `what` begins the line where it is damaged."""
  backend = rust.from_json(content, what)
  if backend.token_to_id(START) is None or backend.token_to_id(END) is None:
    raise UserError(f"{what}: it has no {START} and {END}")
  whole_words = isinstance(backend.model, models.WordLevel)
  # The library would fail over the first word that it does not know.
  if whole_words and content["model"].get("unk_token") not in backend.get_vocab(False):
    raise UserError(f"{what}: its vocabulary has no word for unknown ones")
  return (WordTokenizer if whole_words else Tokenizer)(backend)


def load_clip(path: str | pathlib.Path) -> Tokenizer:
  """CLIP's own: from `bpe_simple_vocab_16e6.txt.gz`, 49,408 tokens, or from a Hugging Face folder
  of a CLIP.

  A folder's added tokens (those of Textual Inversion, say) are words of a text.

  The folder holds `vocab.json` and `merges.txt`, or a `tokenizer.json`, of which the vocabulary is
  taken; the rules are those of OpenAI's code, which mends texts first.

  Raises:
    UserError: where the file or folder is not there or holds no such vocabulary.
  """
  path = pathlib.Path(path).expanduser()
  around = None
  if path.is_dir():
    vocabulary, merges, added = _of_folder(path)
    around = beside.read(path, added)
    vocabulary = around.extended(vocabulary)
  else:
    vocabulary, merges = _of_gzip(path)
  if not {START, END} <= vocabulary.keys():
    raise UserError(f"{path} is not a vocabulary of CLIP: it has no {START} and {END}")
  with rust.told(f"the vocabulary and the merges of {path} do not belong together"):
    bpe = models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix="</w>")
  backend = _with_clip_rules(bpe)
  backend.add_special_tokens([START, END])
  if around:
    around.add_to(backend)
  return Tokenizer(backend)


def _of_gzip(path: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
  try:
    with gzip.open(path) as f:
      lines = f.read(MAX_BYTES).decode().split("\n")
  except (OSError, EOFError, ValueError, zlib.error) as e:
    raise UserError(f"cannot read CLIP's vocabulary {path}: {e}") from e
  merges = [tuple(line.split()) for line in lines[1 : PUBLISHED_MERGES + 1]]
  if any(len(m) != 2 for m in merges) or len(merges) != PUBLISHED_MERGES:
    raise UserError(f"{path} is not CLIP's bpe_simple_vocab_16e6.txt.gz")
  symbols = _byte_symbols().values()
  tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(m) for m in merges), START, END]
  return {t: i for i, t in enumerate(tokens)}, merges


def _of_folder(path: pathlib.Path) -> tuple[dict[str, int], list[tuple[str, str]], dict[str, Any]]:
  """Vocabulary, merges, and the added tokens by their ids, where the file of the first has them."""
  vocabulary, merges, whole = path / "vocab.json", path / "merges.txt", path / "tokenizer.json"
  added = {}
  try:
    if vocabulary.is_file() and merges.is_file():
      # Not `splitlines`: a merge may be of other characters that end lines.
      lines = merges.read_text("utf-8").split("\n")
      words = json.loads(vocabulary.read_text("utf-8"))
      pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    elif whole.is_file():
      content = json.loads(whole.read_text("utf-8"))
      # Older files have the two of a merge in one string.
      words, pairs = content["model"]["vocab"], content["model"]["merges"]
      pairs = [pair.split(" ") if isinstance(pair, str) else pair for pair in pairs]
      added = {str(token["id"]): token for token in content.get("added_tokens") or ()}
    else:
      raise UserError(f"{path} has neither vocab.json with merges.txt nor tokenizer.json")
    pairs = [tuple(pair) for pair in pairs]
  except OSError as e:
    raise UserError(f"cannot read the tokenizer in {path}: {e.strerror}") from e
  except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as e:
    raise UserError(f"the tokenizer in {path} cannot be read: {type(e).__name__}: {e}") from e
  if not isinstance(words, dict) or any(len(pair) != 2 for pair in pairs):
    raise UserError(f"the tokenizer in {path} does not merge pairs, as CLIP's does")
  if any(type(number) is not int for number in words.values()):
    raise UserError(f"the tokenizer in {path} has words whose ids are no whole numbers")
  if len(set(words.values())) < len(words):
    raise UserError(f"the tokenizer in {path} has two words with the same id")
  return words, pairs, added


def _byte_symbols() -> dict[int, str]:
  """One printable character for each byte, in CLIP's order (GPT-2's bytes_to_unicode)."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  rest = [b for b in range(256) if b not in printable]
  return {b: chr(b) for b in printable} | {b: chr(256 + i) for i, b in enumerate(rest)}
