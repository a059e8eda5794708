"""Tokenizers of public checkpoints against recorded ids of their own libraries; chat templates;
bad files.
"""

import importlib.util
import json
import pathlib
import shutil

import numpy as np
import pytest
import tokenizers

from vlx.core.errors import UserError
from vlx.data.tokenizers import pieces
from vlx.data.tokenizers import public as public_tokenizers

PARITY = pathlib.Path(__file__).parents[1] / "parity"
RECORDED = json.loads((PARITY / "tokenizer_model.json").read_text())
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "##s", "sat", ",", "cafe"]
TEMPLATE = (
  "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{% endfor %}"
  "{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def llama_like(tmp_path_factory):
  """A folder with a `tokenizer.model`."""
  folder = tmp_path_factory.mktemp("llama")
  package = pathlib.Path(importlib.util.find_spec("mistral_common").origin).parent
  shutil.copy(package / RECORDED["model"], folder / "tokenizer.model")
  return folder


def gguf_of(pieces):
  text, score, kind = map(list, zip(*pieces))
  names = dict(
    model="llama", tokens=text, scores=score, token_type=kind, bos_token_id=1, eos_token_id=2
  )
  return {f"tokenizer.ggml.{name}": value for name, value in names.items()}


def test_sentence_pieces_are_those_of_sentencepiece(llama_like):
  tokenizer = public_tokenizers.load(llama_like)
  assert tokenizer.vocab_size == 32000 and tokenizer.stop_ids == (2,)
  assert [tokenizer.tokens(text) for text in RECORDED["texts"]] == RECORDED["ids"]
  assert [tokenizer.decode(ids) for ids in RECORDED["ids"]] == RECORDED["decoded"]


def test_sentence_pieces_in_gguf_are_the_same(llama_like):
  model = pieces.parse((llama_like / "tokenizer.model").read_bytes())
  tokenizer = public_tokenizers.from_gguf(gguf_of(model.pieces))
  assert tokenizer.stop_ids == (2,)
  assert [tokenizer.tokens(text) for text in RECORDED["texts"]] == RECORDED["ids"]


def test_word_pieces_of_bert(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  tokenizer = public_tokenizers.load(tmp_path)
  assert tokenizer.tokens("The cats, sat dog Café") == [2, 4, 5, 6, 8, 7, 1, 9, 3]
  (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
  assert public_tokenizers.load(tmp_path / "vocab.txt").tokens("The cats") == [2, 1, 5, 6, 3]


def test_fixed_lengths_keep_the_special_tokens(tmp_path):
  (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
  ids, mask = public_tokenizers.load(tmp_path).encode_batch(
    ["the cat sat", "the the cat the sat the"], 6
  )
  np.testing.assert_array_equal(ids, [[2, 4, 5, 7, 3, 0], [2, 4, 4, 5, 4, 3]])
  np.testing.assert_array_equal(mask, [[True] * 5 + [False], [True] * 6])
  assert ids.dtype == np.int32 and mask.dtype == bool


@pytest.fixture
def saved(tmp_path):
  """A folder as `save_pretrained` writes it."""
  words = {
    w: i for i, w in enumerate(["<s>", "</s>", "[", "]", "user", "assistant", "hi", "<stop>"])
  }
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
  backend.add_special_tokens(["<s>", "</s>", "<stop>"])
  backend.save(str(tmp_path / "tokenizer.json"))
  config = dict(bos_token={"content": "<s>"}, eos_token="</s>", chat_template=TEMPLATE)
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
  return tmp_path


def test_a_folder_of_hugging_face(saved):
  tokenizer = public_tokenizers.load(saved)
  assert tokenizer.stop_ids == (1, 7) and tokenizer.vocab_size == 8
  message = [{"role": "user", "content": " hi "}]
  assert tokenizer.render(message) == "<s>[user] hi[assistant]"
  assert tokenizer.chat(message) == [0, 2, 4, 3, 6, 2, 5, 3]
  (saved / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
  assert public_tokenizers.load(saved).render(message) == " hi "
  assert public_tokenizers.load(saved / "tokenizer.json").stop_ids == (1, 7)


@pytest.mark.parametrize(
  "template, told",
  [
    ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    ("{{ raise_exception('no system role') }}", "no system role"),
    ("{% for", "TemplateSyntaxError"),
    ("{{ messages.append(1) }}", "SecurityError"),
    ("{{ messages[0].nothing.more }}", "UndefinedError"),
  ],
)
def test_a_template_runs_in_a_sandbox(saved, template, told):
  (saved / "chat_template.jinja").write_text(template)
  with pytest.raises(UserError, match=told):
    public_tokenizers.load(saved).render([{"role": "user", "content": "hi"}])


def test_a_tokenizer_of_another_model_is_told(saved):
  tokenizer = public_tokenizers.load(saved)
  public_tokenizers.check_fits(tokenizer, 8)
  with pytest.raises(UserError, match="8 tokens but the model 7"):
    public_tokenizers.check_fits(tokenizer, 7)


def test_where_there_is_none(tmp_path):
  assert public_tokenizers.load(tmp_path) is None
  assert public_tokenizers.from_gguf({"general.architecture": "llama"}) is None
  with pytest.raises(UserError, match="no file"):
    public_tokenizers.load(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
  "name, content",
  [
    ("tokenizer.json", b"{}"),
    ("tokenizer.json", b"\xff"),
    ("vocab.txt", b"a\nb\n"),
    ("vocab.txt", b"\xff\xfe"),
    ("tokenizer.model", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x0f"),
    ("tokenizer.model", b"hello"),
    ("tokenizer.model", b""),
    ("tokenizer.bin", b""),
  ],
)
def test_damaged_files_are_told_in_one_line(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=name) as told:
    public_tokenizers.load(tmp_path / name)
  assert "\n" not in str(told.value)


def test_a_model_cut_off_anywhere_is_told_or_read(llama_like, tmp_path):
  data = (llama_like / "tokenizer.model").read_bytes()
  for size in range(1, 3000, 97):
    (tmp_path / "tokenizer.model").write_bytes(data[:size])
    with pytest.raises(UserError):
      public_tokenizers.load(tmp_path)


@pytest.mark.parametrize(
  "changed, told",
  [
    (dict(model="wordpiece"), "wordpiece"),
    (dict(scores=[0.0]), "damaged"),
    (dict(tokens=[1, 2]), "damaged"),
    (dict(model="gpt2", pre="something"), "something"),
    (dict(bos_token_id=99), "damaged"),
  ],
)
def test_damaged_metadata_of_gguf_are_told(changed, told):
  metadata = gguf_of([("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3), ("a", -1.0, 1)])
  metadata["tokenizer.ggml.merges"] = ["a a"]
  assert public_tokenizers.from_gguf(metadata).vocab_size == 4
  with pytest.raises(UserError, match=told):
    public_tokenizers.from_gguf(
      metadata | {f"tokenizer.ggml.{name}": x for name, x in changed.items()}
    )
