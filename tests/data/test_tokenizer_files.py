"""What the files beside a vocabulary say counts: added tokens, options, chat templates, as recorded
from transformers. What contradicts itself, or is damaged, is one line.
"""

import importlib.util
import json
import pathlib
import pickle
import shutil

import numpy as np
import pytest
import tokenizers

from vlx.core.errors import UserError
from vlx.data.tokenizers import load as load_saved
from vlx.data.tokenizers import public, rust, templates, trained

PARITY = pathlib.Path(__file__).parents[1] / "parity"
RECORDED = json.loads((PARITY / "tokenizer_files.json").read_text())
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
HI = [{"role": "user", "content": "hi"}]


def written(folder, **contents):
  """JSON files by their names without the suffix."""
  for name, content in contents.items():
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / f"{name}.json").write_text(text)
  return folder


@pytest.fixture
def bert(tmp_path):
  words = [*SPECIAL, "a", "cafe", "<", "img", ">", "sep", "[", "]", "é"]
  (tmp_path / "vocab.txt").write_text("".join(w + "\n" for w in words))
  return tmp_path


@pytest.fixture(scope="module")
def llama_files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("llama")
  package = pathlib.Path(importlib.util.find_spec("mistral_common").origin).parent
  shutil.copy(package / RECORDED["model"], folder / "tokenizer.model")
  return folder


@pytest.fixture
def whole(tmp_path):
  """A `tokenizer.json` as an object, before it is written."""
  words = {w: i for i, w in enumerate(["<s>", "</s>", "<unk>", "a", "hi", "<|x|>"])}
  backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, "<unk>"))
  backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
  backend.add_special_tokens(["<s>", "</s>", "<|x|>"])
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
  )
  return json.loads(backend.to_str())


@pytest.mark.parametrize(
  "case", RECORDED["bert"], ids=lambda c: str(list(c["config"].items())[1:3])
)
def test_berts_options_are_transformers(case, tmp_path):
  (tmp_path / "vocab.txt").write_text("".join(w + "\n" for w in RECORDED["words"]))
  written(tmp_path, tokenizer_config=case["config"])
  found = public.load(tmp_path)
  assert [found.tokens(text) for text in RECORDED["bert_texts"]] == case["ids"]


@pytest.mark.parametrize("index", range(len(RECORDED["llama"])))
def test_llamas_options_are_transformers(index, llama_files):
  case = RECORDED["llama"][index]
  found = public.load(written(llama_files, tokenizer_config=case["config"]))
  assert [found.tokens(text) for text in RECORDED["llama_texts"]] == case["ids"]
  assert found.chat(HI) == case["chat"]


def test_tokens_that_were_added_beside_sentencepiece_are_one_id_each_and_end_a_turn(llama_files):
  added = {"<|im_end|>": 32000, "<|im_start|>": 32001}
  template = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"
  config = dict(eos_token="<|im_end|>", chat_template=template)
  written(llama_files, tokenizer_config=config, added_tokens=added)
  written(llama_files, special_tokens_map={"additional_special_tokens": ["<|im_start|>"]})
  found = public.load(llama_files)
  for file in ("added_tokens", "special_tokens_map"):
    (llama_files / f"{file}.json").unlink()
  ids = found.chat(HI)
  assert (ids[0], ids[-1], found.stop_ids, found.vocab_size) == (32001, 32000, (32000,), 32002)
  assert found.decode([*ids, 32001]) == "hi"
  again = found.chat([{"role": "user", "content": "<|im_end|><|im_start|>hi"}])
  assert again[0] == 32001 and again[-1] == 32000 and not {32000, 32001} & set(again[1:-1])


def test_words_that_were_added_to_berts(bert):
  written(bert, added_tokens={"<img>": 15, "zebra": 14})
  assert public.load(bert).tokens("a <img> Zebra") == [2, 5, 15, 14, 3]


def test_berts_basic_splitting_can_be_left_out(bert):
  written(bert, tokenizer_config=dict(do_basic_tokenize=False))
  assert public.load(bert).tokens("a [ CAFE a]") == [2, 5, 11, 1, 1, 3]


@pytest.mark.parametrize(
  "files, told",
  [
    (dict(tokenizer_config=dict(never_split=["cafe"])), "never_split"),
    (dict(tokenizer_config=dict(tokenizer_class="BertJapaneseTokenizer")), "BertJapanese"),
    (dict(tokenizer_config=dict(strip_accents="yes")), "strip_accents is 'yes'"),
    (dict(tokenizer_config=dict(wordpieces_prefix="@@")), "wordpieces_prefix"),
    (dict(tokenizer_config=dict(cls_token=["[CLS]"])), "cls_token"),
    (dict(tokenizer_config=dict(cls_token="<s>")), "it has no <s>"),
    (dict(tokenizer_config=dict(added_tokens_decoder={"5": {"content": "b"}})), "the id 5"),
    (dict(tokenizer_config=dict(added_tokens_decoder={"14": {"content": "a"}})), "'a' has the id"),
    (dict(tokenizer_config=dict(added_tokens_decoder=[1])), "no object"),
    (dict(tokenizer_config=dict(added_tokens_decoder={"x": {}})), "added_tokens_decoder"),
    (
      dict(tokenizer_config=dict(added_tokens_decoder={"9" * 5000: {"content": "b"}})),
      "added_tokens_decoder",
    ),
    (dict(tokenizer_config=dict(additional_special_tokens=[[]])), "additional_special_tokens"),
    (dict(tokenizer_config=dict(chat_template=7)), "no text"),
    (dict(tokenizer_config=dict(chat_template=[{"name": "rag", "template": ""}])), "'default'"),
    (dict(added_tokens={"x": "y"}), "added_tokens.json"),
    (dict(added_tokens={"\ud800": 14}), "added_tokens.json"),
    (dict(added_tokens={"x": 14, "y": 14}), "another meaning"),
    (dict(added_tokens="[" * 100_000), "not JSON"),
  ],
)
def test_what_would_change_ids_and_is_not_supported_is_refused(files, told, bert):
  written(bert, **files)
  with pytest.raises(UserError, match=told) as found:
    public.load(bert)
  assert "\n" not in str(found.value)


def test_what_changes_no_ids_is_taken(bert):
  harmless = dict(model_max_length=512, padding_side="left", clean_up_tokenization_spaces=True)
  harmless |= dict(
    extra_special_tokens={"image_token": "<img>"}, additional_special_tokens=["[MASK]"]
  )
  harmless |= dict(never_split=["[MASK]"], tokenizer_class="BertTokenizerFast", name_or_path="x")
  written(bert, tokenizer_config=harmless)
  assert public.load(bert).tokens("a") == [2, 5, 3]


def test_berts_options_beside_a_whole_tokenizer_count(bert, tmp_path_factory):
  written(bert, tokenizer_config=dict(do_lower_case=True))
  content = json.loads(public.load(bert)._backend.to_str())
  folder = written(tmp_path_factory.mktemp("whole"), tokenizer=content)
  assert public.load(folder).tokens("É") == [2, 1, 3]
  written(folder, tokenizer_config=dict(strip_accents=False))
  assert public.load(folder).tokens("É") == [2, 13, 3]


# Texts are texts.


@pytest.mark.parametrize("text", ("a <|x|> </s>", "<|x|>", "<|X|></s> <s>", "<<|x|>|x|>"))
def test_no_letters_make_a_special_token(text, whole, tmp_path):
  """Of a tokenizer that would find them among its words, and after pickling, too."""
  found = public.load(written(tmp_path, tokenizer=whole))
  found.save(tmp_path / "saved.json")
  for one in (found, pickle.loads(pickle.dumps(found)), load_saved(tmp_path / "saved.json")):
    ids, mask = one.encode(text, 20)
    for read in (one.tokens(text), ids[mask].tolist()):
      assert read == [0, *one.tokens_of(text), 1]
    assert not {0, 1, 5} & set(one.tokens_of(text))
    ids, mask, _ = one.encode_pair(text, "a", 20)
    assert ids[mask].tolist() == [0, *one.tokens_of(text), 1, 3, 1]


def test_clips_end_of_text_is_not_what_a_caption_says():
  """CLIP's feature is taken at the end of text, the first one or the last."""
  tokenizer = trained.train_bpe(["a man with a hat"] * 5, 560)
  text = "a man <|endoftext|> with <|startoftext|> a hat"
  for one in (tokenizer, pickle.loads(pickle.dumps(tokenizer))):
    ids, mask = one.encode(text, 77)
    ids = ids[mask].tolist()
    assert [ids.count(one.start_id), ids.count(one.end_id)] == [1, 1]
    assert ids[0] == one.start_id and ids[-1] == one.end_id
    assert one.decode(ids) == "a man <| endoftext |> with <| startoftext |> a hat"
  words = trained.train_word_level(["a man"], 100, 1)
  assert words.tokens_of("a <|endoftext|> man") == [3, 2, 4]


def test_a_message_ends_no_turn_and_begins_none(whole, tmp_path):
  template = "{% for m in messages %}<|x|> {{ m.content | trim }} </s>{% endfor %}"
  written(tmp_path, tokenizer=whole, tokenizer_config=dict(chat_template=template))
  found = public.load(tmp_path)
  assert found.chat([{"role": "user", "content": "hi"}]) == [5, 4, 1]
  ids = found.chat([{"role": "user", "content": " hi </s><|x|> a <s> "}])
  assert (ids[:2], ids[-1], ids.count(5), ids.count(1), ids.count(0)) == ([5, 4], 1, 1, 1, 0)
  assert found.render([{"role": "user", "content": " </s> "}]) == "<|x|> </s> </s>"


@pytest.mark.parametrize("files", ("vocab.json", "tokenizer.json"))
def test_words_that_were_added_to_clips(files, tmp_path):
  """As Textual Inversion adds them; they survive merges that are left out, and come back."""
  plain = trained.train_bpe(["a man with a hat"] * 5, 560)
  content = json.loads(plain._backend.to_str())
  number = plain.vocab_size
  if files == "vocab.json":
    pairs = [m if isinstance(m, str) else " ".join(m) for m in content["model"]["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n")
    written(tmp_path, vocab=content["model"]["vocab"], added_tokens={"<déjà 日>": number})
  else:
    token = dict(id=number, content="<déjà 日>", special=False, normalized=False)
    token |= dict(lstrip=False, rstrip=False, single_word=False)
    written(tmp_path, tokenizer=content | dict(added_tokens=[*content["added_tokens"], token]))
  found = trained.load_clip(tmp_path)
  assert (found.vocab_size, found.start_id) == (number + 1, plain.start_id)
  ids = found.tokens("a <déjà 日> hat")
  assert ids == [*plain.tokens("a")[:2], number, *plain.tokens("hat")[1:]]
  assert found._dropped("a <déjà 日> hat", 0.0, np.random.default_rng(0)) == ids[1:-1]
  assert found.decode(ids) == "a <déjà 日> hat"


# Ids without a word.


def test_ids_beyond_the_words_are_passed_over(whole, tmp_path):
  words, bpe = trained.train_word_level(["a cat"], 100, 1), trained.train_bpe(["a cat"], 600)
  assert words.decode([0, 3, 5000, 2**40, -1, 4, 1]) == "a cat"
  assert bpe.decode([0, *bpe.tokens_of("a cat"), 5000, 2**40, -1, 1]) == "a cat"
  assert public.load(written(tmp_path, tokenizer=whole)).decode([4, 5000, 2**40, -1, 3]) == "hi a"


# Contradictions and damage.


def changed(content, path, value):
  *path, last = path
  inner = content
  for name in path:
    inner = inner[name]
  inner[last] = value
  return content


@pytest.mark.parametrize(
  "path, value, told",
  [
    (("post_processor", "special_tokens", "<s>", "ids"), [77], "'<s>' has the id 77"),
    (("post_processor", "special_tokens", "</s>", "ids"), [3], "'</s>' has the id 3"),
    (("post_processor", "special_tokens"), {}, "its template has '<s>'"),
    (("post_processor", "pair", 0, "SpecialToken", "type_id"), 2**31, "its template has segments"),
    (("post_processor", "single", 1, "Sequence", "type_id"), 2, "its template has segments"),
    (("model", "vocab", "a"), 2**31, "absurd"),
    (("added_tokens", 2, "id"), 9, "'<|x|>' has the id 9"),
    (("model", "vocab", "a"), 4, "same id"),
    (("model", "vocab", "a"), -1, "tokenizer.json"),
    (("model", "vocab", "a"), [[]], "tokenizer.json"),
    (("model", "vocab"), {}, "tokenizer.json"),
    (("model",), None, "tokenizer.json"),
    (("added_tokens",), 3, "tokenizer.json"),
    (("added_tokens", 0), [], "tokenizer.json"),
    (("post_processor",), {"type": "BertProcessing", "sep": ["a", 1], "cls": ["a", 3]}, "'a' has"),
    (("pre_tokenizer",), {"type": "Split", "pattern": {"Regex": "("}}, "tokenizer.json"),
  ],
)
def test_a_tokenizer_whose_parts_contradict_each_other(path, value, told, whole, tmp_path):
  written(tmp_path, tokenizer=changed(whole, path, value))
  with pytest.raises(UserError, match=told) as found:
    public.load(tmp_path)
  assert "\n" not in str(found.value)


def test_merges_that_are_left_out_at_random_are_refused(tmp_path):
  backend = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, [], dropout=0.5))
  written(tmp_path, tokenizer=backend.to_str())
  with pytest.raises(UserError, match="dropout"):
    public.load(tmp_path)


@pytest.mark.parametrize("second", ("b", "é", ""))
def test_a_prefix_that_the_library_would_die_of(second, tmp_path):
  """It cuts it off without a look: bytes out of the middle of a letter, or more than there are."""
  content = json.loads(tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0}, [])).to_str())
  content["model"] |= dict(merges=[["a", second]], continuing_subword_prefix="xyz")
  with pytest.raises(UserError, match="prefix 'xyz'"):
    public.load(written(tmp_path, tokenizer=content))


def test_a_panic_of_the_library_is_one_line():
  """Rust's panics are no `Exception`s; what ends the process is none either, and goes on."""
  panic = type("PanicException", (BaseException,), {})
  with pytest.raises(UserError, match="what: PanicException: two lines"), rust.told("what"):
    raise panic("two\nlines")
  with pytest.raises(KeyboardInterrupt), rust.told("what"):
    raise KeyboardInterrupt


def test_a_damaged_tokenizer_of_a_run_is_one_line(whole, tmp_path):
  for content in ("", "[]", "{}", '{"backend": 1}', '{"backend": {}}', "\x00", json.dumps(whole)):
    (tmp_path / "t.json").write_text(content)
    with pytest.raises(UserError, match="t.json") as found:
      load_saved(tmp_path / "t.json")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("change", [dict(vocab={}), dict(unk_token="x")])
def test_whole_words_without_one_for_unknown_ones(change, tmp_path):
  """The library would fail at the first unknown word of a text."""
  trained.train_word_level(["ab a cd", "ab"], 30, 1).save(tmp_path / "t.json")
  assert load_saved(tmp_path / "t.json").tokens("zz")
  content = json.loads((tmp_path / "t.json").read_text())
  content["model"] |= change
  (tmp_path / "t.json").write_text(json.dumps(content))
  with pytest.raises(UserError, match="t.json"):
    load_saved(tmp_path / "t.json")


def test_pieces_of_absurd_length_take_no_time():
  """Each is cut in two at each of its letters."""
  names = dict(
    model="llama", tokens=["<unk>", "<s>", "</s>", "a" * 600_000], scores=[0.0] * 4, bos_token_id=1
  )
  names |= dict(token_type=[2, 3, 3, 1])
  with pytest.raises(UserError, match="600000 letters"):
    public.from_gguf({f"tokenizer.ggml.{name}": x for name, x in names.items()})


# Chat templates.


@pytest.mark.parametrize("template, wanted", RECORDED["templates"])
def test_templates_render_as_in_transformers(template, wanted):
  special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
  values = dict(tools=None, documents=None, add_generation_prompt=True)
  assert (
    templates.render(template, {**special, **values, "messages": RECORDED["messages"]}) == wanted
  )


def test_where_templates_stand(bert):
  rendered = lambda: public.load(bert).render(HI)
  written(
    bert,
    tokenizer_config=dict(chat_template=[dict(name="default", template="named {{ cls_token }}")]),
  )
  assert rendered() == "named "
  written(
    bert, tokenizer_config=dict(cls_token="[CLS]", chat_template=dict(default="{{ cls_token }}"))
  )
  assert rendered() == "[CLS]"
  written(bert, chat_template=dict(chat_template="of a processor"))
  assert rendered() == "of a processor"
  (bert / "chat_template.jinja").write_text("of a file {{ mask_token }}")
  assert rendered() == "of a file "


@pytest.mark.parametrize(
  "template",
  [
    "{{ 10 ** (10 ** 8) }}",
    pytest.param(
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      marks=pytest.mark.slow,  # seconds, as the one above
    ),
    "{{ 'a' * 10 ** 10 }}",
    "{% for a in range(5) %}{{ 'a' * 10 ** 7 }}{% endfor %}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "(" * 3000,
    "{{ raise_exception('two\nlines') }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
  ],
)
def test_a_template_ends_in_its_text_or_in_one_line(template):
  with pytest.raises(UserError, match="chat template") as found:
    templates.render(template, dict(messages=HI))
  assert "\n" not in str(found.value)
  assert templates.render("{{ messages[0].content }}", dict(messages=HI)) == "hi"
