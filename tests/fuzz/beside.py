"""Readers of the JSON and the vocabularies beside weights, and of vlx's own folders."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from safetensors.numpy import load_file, save_file

from tests.fuzz import mutations as m
from tests.fuzz.harness import Content, Reader
from tests.fuzz.weights import PARITY, load, read_model
from tests.pretrained.test_load import CONFIG
from vlx import convert
from vlx.core import checkpoint
from vlx.data import tokenizers as own_tokenizers
from vlx.data.tokenizers import public, trained
from vlx.pretrained import bert, tables
from vlx.pretrained.formats.safetensors import write_safetensors

HF_BERT = {**CONFIG, "hidden_size": 8}
LLAMA = dict(
  model_type="llama", vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
  num_key_value_heads=1, intermediate_size=16, max_position_embeddings=32, rms_norm_eps=1e-5,
  tie_word_embeddings=True, hidden_act="silu", rope_theta=10000.0, attention_bias=False, head_dim=4,
)  # fmt: skip
VIT = dict(
  model_type="vit", hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
  image_size=8, patch_size=4, num_channels=3, qkv_bias=True, layer_norm_eps=1e-6, hidden_act="gelu",
  id2label={"0": "cat", "1": "dog"}, architectures=["ViTForImageClassification"],
)  # fmt: skip
CLIP = dict(
  model_type="clip",
  projection_dim=8,
  text_config=dict(
    hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=12,
    max_position_embeddings=8, hidden_act="quick_gelu", eos_token_id=2, layer_norm_eps=1e-5,
  ),
  vision_config=dict(
    hidden_size=8, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, image_size=8,
    patch_size=4, hidden_act="quick_gelu", layer_norm_eps=1e-5,
  ),
)  # fmt: skip
OPEN_CLIP = dict(
  model_cfg=dict(
    embed_dim=16,
    quick_gelu=True,
    vision_cfg=dict(width=64, head_width=16, layers=2, ls_init_value=None),
    text_cfg=dict(width=64, heads=2),
  ),
  preprocess_cfg=dict(
    mean=[0.5] * 3, std=[0.25] * 3, interpolation="bicubic", resize_mode="shortest"
  ),
)
PREPROCESSOR = dict(
  do_resize=True, size={"shortest_edge": 8}, resample=3, do_center_crop=True, do_rescale=True,
  crop_size={"height": 8, "width": 8}, do_normalize=True, rescale_factor=1 / 255,
  image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.4], do_convert_rgb=True,
)  # fmt: skip
GENERATION = dict(bos_token_id=1, eos_token_id=[2, 9], max_length=16)
TEMPLATE = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefg", "##a", "##b", "ab", "cd", "."]
TEXTS = ("ab a cd.", "a ✓ b", "")


def _weights(folder, layout, name="model.safetensors"):
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: rng.normal(size=x.shape).astype(np.float32), load.variable_shapes(layout.system)
  )
  write_safetensors(
    folder / name,
    tables.public_shapes(layout.rows, variables),
    tables.export(layout.rows, variables),
  )
  return variables


def _json(folder, **contents):
  for name, content in contents.items():
    (folder / f"{name}.json").write_text(json.dumps(content))


def _bert(folder):
  _weights(folder, bert.from_hugging_face(HF_BERT))
  (folder / "vocab.txt").write_text("".join(w + "\n" for w in WORDS))
  _json(folder, config=HF_BERT, tokenizer_config=dict(do_lower_case=True, cls_token="[CLS]"))


def sentencepiece(pieces):
  """A `tokenizer.model`: a protobuf of (text, score, kind)."""
  field = lambda number, data: bytes([number << 3 | 2, len(data)]) + data
  out = b"".join(
    field(1, field(1, text.encode()) + b"\x15" + np.float32(score).tobytes() + bytes([0x18, kind]))
    for text, score, kind in pieces
  )
  return out + field(2, b"\x18\x02") + field(3, field(1, b"identity") + b"\x18\x01\x20\x00\x28\x01")


PIECES = [
  ("<unk>", 0, 2), ("<s>", 0, 3), ("</s>", 0, 3), ("▁", -1, 1), ("a", -2, 1), ("b", -3, 1),
  ("ab", -4, 1), ("▁ab", -5, 1),
]  # fmt: skip


def _llama(folder):
  _weights(folder, load.module("llama").from_hugging_face(LLAMA))
  _json(folder, config=LLAMA)
  _llama_words(folder)


def _llama_words(folder):
  (folder / "tokenizer.model").write_bytes(sentencepiece(PIECES))
  added = {"9": dict(content="<|x|>", special=True, normalized=False, lstrip=False)}
  config = dict(
    bos_token="<s>", eos_token={"content": "</s>"}, add_bos_token=True, add_eos_token=False,
    chat_template=TEMPLATE, added_tokens_decoder=added, model_max_length=512, legacy=False,
    tokenizer_class="LlamaTokenizer",
  )  # fmt: skip
  _json(
    folder,
    tokenizer_config=config,
    special_tokens_map=dict(
      bos_token="<s>", unk_token="<unk>", additional_special_tokens=["<|x|>"]
    ),
    added_tokens={"<|y|>": 8},
    generation_config=GENERATION,
  )


def _whole_tokenizer(folder):
  backend = tokenizers.Tokenizer(
    tokenizers.models.BPE(
      {"<s>": 0, "</s>": 1, "<unk>": 2, "a": 3, "b": 4, "ab": 5, "Ġ": 6, "Ġab": 7},
      [("a", "b"), ("Ġ", "ab")],
      unk_token="<unk>",
    )
  )
  backend.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFC()])
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  backend.add_special_tokens(["<s>", "</s>", "<|x|>"])
  backend.post_processor = tokenizers.processors.TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
  )
  _json(
    folder,
    tokenizer=json.loads(backend.to_str()),
    tokenizer_config=dict(bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE),
    generation_config=dict(eos_token_id=1),
  )


def _said(tokenizer) -> Content:
  """What a tokenizer makes of texts, and a template of a conversation."""
  ids = [tokenizer.tokens(text) for text in TEXTS]
  more = [np.asarray(x).tolist() for x in tokenizer.encode_pair("ab", "cd a", 12)]
  chat = None
  if tokenizer.has_chat:
    chat = tokenizer.chat([{"role": "user", "content": "ab"}])
  decoded = [tokenizer.decode(i) for i in ids]
  return Content((ids, more, chat, decoded, tokenizer.vocab_size, tokenizer.stop_ids))


CLIP_WORDS = [
  "a",
  "b",
  "c",
  "<|startoftext|>",
  "<|endoftext|>",
  "a</w>",
  "b</w>",
  "c</w>",
  "ab</w>",
]


def _clip_words(folder):
  _json(folder, vocab={word: i for i, word in enumerate(CLIP_WORDS)})
  (folder / "merges.txt").write_text("#version: 0.2\na b</w>\n")


def _clip(folder):
  _weights(folder, load.module("clip").from_hugging_face(CLIP))
  _clip_words(folder)
  _json(folder, config=CLIP, preprocessor_config=PREPROCESSOR)


def _vit(folder):
  _weights(folder, load.module("vit").from_hugging_face(VIT))
  preprocessor = {**PREPROCESSOR, "size": {"height": 8, "width": 8}, "do_center_crop": False}
  _json(folder, config=VIT, preprocessor_config=preprocessor)


def _open_clip(folder):
  recorded = load_file(PARITY / "clip_openai.safetensors")
  prefix = "open_clip_config/weights/"
  weights = {n.removeprefix(prefix): x for n, x in recorded.items() if n.startswith(prefix)}
  save_file(weights, folder / "open_clip_model.safetensors")
  _json(folder, open_clip_config=OPEN_CLIP)


def _google(folder):
  for file in (PARITY / "google_bert").iterdir():
    shutil.copy(file, folder)


def _own(folder):
  """A converted folder, and one with what a run keeps beside."""
  layout = bert.from_hugging_face(HF_BERT)
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda x: jnp.asarray(rng.normal(size=x.shape).astype(np.float32)),
    load.variable_shapes(layout.system),
  )
  convert.save_vlx(folder, layout.system, variables, "")
  (folder / "vocab.txt").write_text("".join(w + "\n" for w in WORDS))


def _run(folder):
  """Checkpoints of a run, with a part that is frozen."""
  rng = np.random.default_rng(0)
  array = lambda *shape: jnp.asarray(rng.normal(size=shape).astype(np.float32))
  shared = array(3, 4)
  state = {
    "variables": {"params": {"a": array(4, 5), "b": array(3)}, "state": {"c": array(2)}},
    "average": {"a": array(4, 5)},
    "step": jnp.int32(3),
  }
  with checkpoint.open_manager(folder / "checkpoints") as manager:
    checkpoint.save(manager, 3, state)
  checkpoint.save_frozen(folder, {"params": {"x": shared, "y": shared}})
  checkpoint.mark_best(folder / "checkpoints", 3, "loss", 0.5, higher=False)


def _read_run(folder) -> Content:
  stored = checkpoint.RunVariables(folder)
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  found = stored.read(
    {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for n, x in stored.shapes.items()}
  )
  form = {n: (x.shape, str(x.dtype)) for n, x in found.items()}
  return Content(
    (form, checkpoint.best_of(folder / "checkpoints")),
    {n: np.asarray(x).tobytes() for n, x in found.items()},
  )


def _model(folder):
  return read_model(folder, TEXTS)


def _saved_tokenizers(folder):
  for name, tokenizer in (
    ("bpe", trained.train_bpe(["ab a cd", "ab"], 300)),
    ("words", trained.train_word_level(["ab a cd", "ab"], 30, 1)),
  ):
    tokenizer.save(folder / f"{name}.json")
  _llama_words(folder)
  public.load(folder / "tokenizer.model").save(folder / "public.json")


def _read_saved(folder):
  said = []
  for name in ("bpe", "words", "public"):
    tokenizer = own_tokenizers.load(folder / f"{name}.json")
    said.append([tokenizer.tokens("ab a cd"), tokenizer.vocab_size])
  return Content(said)


JSON = (m.of_json, m.of_json, m.of_json, m.of_bytes)

# Of nothing that these files say.
NEVER = frozenset(("NaN", "infinity", "digits", "depth", "surrogate", "list", "lists", "object"))
# Nor are a vocabulary's numbers these.
NO_WORDS = NEVER | {"negative", "fraction", "10^30", "2^63", "1e308", "1e-308"}

READERS = {
  "bert": Reader(_bert, _model, {"*.json": JSON, "vocab.txt": (m.of_bytes, m.of_lines)}, never=NEVER),
  "llama": Reader(_llama, _model, {"config.json": JSON}, never=NEVER),
  "vit": Reader(_vit, _model, {"*.json": JSON}, never=NEVER),
  "clip": Reader(_clip, _model, {"*.json": JSON, "merges.txt": (m.of_bytes, m.of_lines)}, never=NEVER),
  "open_clip": Reader(_open_clip, _model, {"*.json": JSON}, never=NEVER),
  "google's bert": Reader(
    _google, _model, {"*.json": JSON, "vocab.txt": (m.of_bytes, m.of_lines)}
  ),
  "sentencepiece": Reader(
    _llama_words,
    lambda folder: _said(public.load(folder)),
    {"*.json": JSON, "tokenizer.model": (m.of_bytes,)},
    never=NO_WORDS,
  ),
  "tokenizer.json": Reader(
    _whole_tokenizer, lambda folder: _said(public.load(folder)), {"*.json": JSON}, never=NO_WORDS
  ),
  "clip's words": Reader(
    _clip_words,
    lambda folder: Content([trained.load_clip(folder).tokens(text) for text in TEXTS]),
    {"vocab.json": JSON, "merges.txt": (m.of_bytes, m.of_lines)},
    never=NO_WORDS,
  ),
  "saved tokenizers": Reader(
    _saved_tokenizers, _read_saved, {n: JSON for n in ("bpe.json", "words.json", "public.json")}, never=NO_WORDS
  ),
  "converted": Reader(_own, _model, {"config.json": JSON}),
  "run": Reader(
    _run,
    _read_run,
    {"checkpoints/3/**/*": (m.of_bytes,), "frozen/0/**/*": (m.of_bytes,)},
    checked=True,
  ),
  "run's notes": Reader(
    _run, _read_run, {"**/best.json": JSON, "**/same.json": JSON}, silent=frozenset()
  ),
}  # fmt: skip
