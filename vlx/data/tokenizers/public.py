"""Tokenizers of public checkpoints, and their chat templates.

Read are `tokenizer.json`, SentencePiece's `tokenizer.model` (BPE, as LLaMA's), BERT's `vocab.txt`,
and what GGUF files have in their metadata. All become tokenizers of the library `tokenizers`.

A text is text: no letters of it become a special token. Those come from the post-processor, which
puts them around a text, and from a chat template, outside of what messages say.
"""

import contextlib
import functools
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tokenizers
from tokenizers import normalizers

from vlx.core import files
from vlx.core.errors import UserError
from vlx.data.tokenizers import beside as beside_files
from vlx.data.tokenizers import builders, pieces, rust, templates
from vlx.data.tokenizers.beside import Beside, mark_special
from vlx.data.tokenizers.trained import shortened

Messages = Sequence[Mapping[str, str]]  # {"role": "user", "content": "…"}

# What ends a turn in the models that GGUF files hold; their metadata name only one such token.
_ENDS = ("<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>")

# In what a message says, it parts the letters of a special token. It is no character of any text
# (Unicode, §23.7).
_APART = "\ufdd0"


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
      words: `bos_token`, `eos_token` and others, for the template.
    """
    backend.no_padding()
    backend.no_truncation()
    self.stop_ids = tuple(sorted(set(stop_ids)))
    stops = [backend.id_to_token(i) for i in self.stop_ids if 0 <= i < 2**32]
    mark_special(backend, [word for word in stops if word is not None])
    backend.encode_special_tokens = True  # as the text that they are
    self._backend = backend
    token = lambda *names: next((i for i in map(backend.token_to_id, names) if i is not None), None)
    start, end = (words.get(name, "") for name in ("cls_token", "sep_token"))
    self.start_id = token(words.get("bos_token", start), start, "[CLS]")
    self.end_id = token(words.get("eos_token", end), end, "[SEP]")
    self.has_chat = template is not None
    self._template, self._words = template, dict(words)
    unknown = getattr(backend.model, "unk_token", None)
    special = {
      number: token.content
      for number, token in backend.get_added_tokens_decoder().items()
      if token.special and token.content != unknown
    }
    self._special = frozenset(special)
    # the longest first, for one may begin as another does
    words = sorted((w for w in special.values() if len(w) > 1), key=len, reverse=True)
    self._special_words = re.compile("|".join(map(re.escape, words)) or "(?!)", re.IGNORECASE)

  @functools.cached_property
  def vocab_size(self) -> int:
    """The size that a model's vocabulary must have: one more than the largest id."""
    return 1 + max(self._backend.get_vocab().values())

  def _plain(self, text: str) -> tokenizers.Encoding:
    """A text without special tokens around it.

    Where a special token stands among the words of the vocabulary, a whole word of the text may be
    it: its letters are parted by a space.
    """
    with rust.told("the tokenizer cannot read a text"):
      found = self._backend.encode(text, add_special_tokens=False)
      if self._special.isdisjoint(found.ids):
        return found
      apart = self._special_words.sub(lambda m: f"{m[0][0]} {m[0][1:]}", text)
      return self._backend.encode(apart, add_special_tokens=False)

  def _around(self, *parts: tokenizers.Encoding) -> tokenizers.Encoding:
    """A text, or two, with the special tokens around."""
    with rust.told("the tokenizer cannot put special tokens around a text"):
      return self._backend.post_process(*parts)

  def tokens(self, text: str) -> list[int]:
    """All ids of a text, special ones and all."""
    return self._around(self._plain(text)).ids

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
    found = self._plain(text)
    found.truncate(length - self._backend.num_special_tokens_to_add(False))
    tokens = self._around(found).ids
    ids = np.zeros(length, np.int32)
    ids[: len(tokens)] = tokens
    return ids, np.arange(length) < len(tokens)

  def encode_pair(
    self, first: str, second: str, length: int
  ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(ids, mask, segments), `[length]` each, with the special tokens that the model knows pairs by."""
    plain = [self._plain(text) for text in (first, second)]
    room = length - self._backend.num_special_tokens_to_add(True)
    kept = shortened(*(list(found.ids) for found in plain), room)
    for found, ids in zip(plain, kept):
      found.truncate(len(ids))
    both = self._around(*plain)
    ids, segments = np.zeros(length, np.int32), np.zeros(length, np.int32)
    ids[: len(both.ids)], segments[: len(both.ids)] = both.ids, both.type_ids
    return ids, np.arange(length) < len(both.ids), segments

  def encode_batch(self, texts: Sequence[str], length: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids `[N, length]`, mask `[N, length]`)."""
    ids, masks = zip(*(self.encode(text, length) for text in texts))
    return np.stack(ids), np.stack(masks)

  def decode(self, ids: Iterable[int]) -> str:
    """The text of ids, without special tokens."""
    known = [int(i) for i in ids if 0 <= int(i) < self.vocab_size]
    with rust.told("the tokenizer cannot make a text of ids"):
      return self._backend.decode(known)

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
        sandbox, for a short time.
    """
    return self.chat_ids(messages, answering=True)

  def chat_ids(self, messages: Messages, *, answering: bool) -> list[int]:
    """Ids of a conversation; where `answering`, up to where the assistant's answer begins.

    Special tokens are those that the template writes; what messages say has none.
    """
    said = [{**message, "content": self._marked(message["content"])} for message in messages]
    return self.rendered_ids(self._rendered(said, answering))

  def rendered_ids(self, text: str) -> list[int]:
    """Ids of what a template wrote: here the letters of a special token are one."""
    with rust.told("the tokenizer cannot read a conversation"):
      return self._of_templates.encode(text, add_special_tokens=False).ids

  def tokens_of(self, text: str) -> list[int]:
    """Ids of a text inside of another, without special tokens."""
    return self._plain(text).ids

  def render(self, messages: Messages, *, answering: bool = True) -> str:
    """The text of `chat_ids`."""
    return self._rendered(messages, answering)

  def _rendered(self, messages: Messages, answering: bool) -> str:
    values = dict(messages=messages, tools=None, documents=None, add_generation_prompt=answering)
    return templates.render(self._template, {**self._words, **values})

  def _marked(self, said: str) -> str:
    """What a message says, its special tokens parted by what `_of_templates` takes away again."""
    if not isinstance(said, str):
      raise UserError(f"a message says {said!r}, which is no text")
    return self._special_words.sub(lambda m: m[0][0] + _APART + m[0][1:], said.replace(_APART, ""))

  @functools.cached_property
  def _of_templates(self) -> tokenizers.Tokenizer:
    """The backend that reads special tokens."""
    content = json.loads(self._backend.to_str())
    for token in content["added_tokens"]:
      if token["special"]:  # else they were searched for when the mark is gone
        token["normalized"] = False
    backend = rust.from_json(content, "the tokenizer")
    rules = [backend.normalizer] if backend.normalizer is not None else []
    # Where they stand among the words of the vocabulary, they must stay apart.
    plain = set()
    for i in self._special:
      with contextlib.suppress(Exception):  # their letters are no words that it has
        word = self._backend.id_to_token(i)
        plain.update(self._backend.encode(word, add_special_tokens=False).ids)
    between = "" if self._special.isdisjoint(plain) else " "
    backend.normalizer = normalizers.Sequence([normalizers.Replace(_APART, between), *rules])
    return backend


def from_saved(content: Mapping[str, Any], what: str) -> PublicTokenizer:
  """What `PublicTokenizer.save` wrote; `what` begins the line where it is damaged."""
  backend = rust.from_json(content["backend"], what)
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
    UserError: for a file that cannot be read, that is damaged or of a kind that vlx does not know,
      and for an option beside it that would change ids and that vlx does not support.
  """
  path = pathlib.Path(path)
  folder = path if path.is_dir() else path.parent
  names = ("tokenizer.json", "tokenizer.model", "vocab.txt") if path.is_dir() else (path.name,)
  file = next((folder / name for name in names if (folder / name).is_file()), None)
  if file is None:
    if path.is_dir():
      return None
    raise UserError(f"no file {path}")
  beside = beside_files.read(folder)
  try:
    with rust.told(f"{file} is no tokenizer that vlx can read"):
      template = templates.find(beside)
      match file.suffix:
        case ".json":
          backend = _whole(file, beside, template is not None)
        case ".model":
          backend = builders.by_pieces(file, beside, template is not None)
        case ".txt":
          backend = builders.by_words(file, beside, template is not None)
        case suffix:
          raise UserError(f"{file}: no tokenizer that vlx knows ends in {suffix!r}")
      words = dict(beside.names)
      if file.suffix == ".model":
        words = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | words
      end = backend.token_to_id(words.get("eos_token", ""))
      stops = beside.stop_ids | ({end} if end is not None else set())
      return PublicTokenizer(backend, stops, template, words)
  except UserError as e:
    if str(folder) in str(e):
      raise
    raise UserError(f"{file}: {e}") from e


def _whole(file: pathlib.Path, beside: Beside, chats: bool) -> tokenizers.Tokenizer:
  """A `tokenizer.json`, with what was added beside it; BERT's options beside it count, as they do for
  transformers.
  """
  backend = rust.from_json(json.loads(file.read_bytes()), f"{file} is no tokenizer")
  rules = backend.normalizer
  if isinstance(rules, normalizers.BertNormalizer):
    backend.normalizer = normalizers.BertNormalizer(
      rules.clean_text,
      beside.option("tokenize_chinese_chars", rules.handle_chinese_chars),
      beside.option("strip_accents", rules.strip_accents),
      beside.option("do_lower_case", rules.lowercase),
    )
  beside.extended(backend.get_vocab())
  held = {token.content for token in backend.get_added_tokens_decoder().values()}
  missing = {i: token for i, token in beside.added.items() if token.content not in held}
  beside._replace(added=missing).add_to(backend, chats)
  return backend


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
  with rust.told("the GGUF file's tokenizer is damaged"):
    tokens, kinds = told["tokens"], told.get("token_type", [1] * len(told["tokens"]))
    match told["model"]:
      case "llama":
        model = [pieces.Piece(*piece) for piece in zip(tokens, told["scores"], kinds, strict=True)]
        backend = pieces.by_pieces(model, told.get("add_space_prefix", True))
      case "gpt2":
        backend = builders.by_merges(tokens, kinds, told["merges"], told.get("pre"))
      case other:
        raise UserError(f"a GGUF tokenizer of the kind {other!r}; vlx reads 'llama' and 'gpt2'")
    words = {
      name: tokens[told[key]]
      for name, key in (
        ("bos_token", "bos_token_id"),
        ("eos_token", "eos_token_id"),
        ("unk_token", "unknown_token_id"),
        ("pad_token", "padding_token_id"),
      )
      if key in told
    }
    start = told.get("add_bos_token", told["model"] == "llama")
    end = told.get("add_eos_token", False)
    builders.between(
      backend,
      words.get("bos_token", "<s>") if start else None,
      words.get("eos_token", "</s>") if end else None,
    )
    mark_special(backend, words.values())
    ends = [told[name] for name in ("eos_token_id", "eot_token_id") if name in told]
    ends += [i for i in map(backend.token_to_id, _ENDS) if i is not None]
    return PublicTokenizer(backend, ends, _template_of(metadata), words)


def _template_of(metadata: Mapping[str, Any]) -> str | None:
  found = metadata.get("tokenizer.chat_template")
  if found is not None and not isinstance(found, str):
    raise UserError("the GGUF file's chat template is no text")
  return found
