"""Readers of tensors: one for each format."""

import contextlib
import importlib
import io
import json
import pathlib
import pickle
import shutil
import zipfile

import gguf
import jax
import numpy as np
from safetensors.numpy import save_file

from tests.fuzz import mutations as m
from tests.fuzz.harness import Content, Reader, arrays
from tests.pretrained import tf_tables
from tests.pretrained.test_arctic import OPTIONS, parameters
from vlx.core.system import flatten
from vlx.pretrained import llama
from vlx.pretrained.formats import tf_bundle
from vlx.pretrained.formats.gguf import open_gguf
from vlx.pretrained.formats.npz import open_npz
from vlx.pretrained.formats.safetensors import INDEX, open_safetensors
from vlx.pretrained.formats.tf_bundle import open_tf_bundle
from vlx.pretrained.formats.torch_files import open_torch

PARITY = pathlib.Path(__file__).parents[1] / "parity"
load = importlib.import_module("vlx.pretrained.load")  # the name is a function's too


def _copied(name, to):
  return lambda folder: shutil.copy(PARITY / name, folder / to)


def _tensors(seed=0):
  rng = np.random.default_rng(seed)
  return {
    "encoder.weight": rng.normal(size=(4, 6)).astype(np.float32),
    "encoder.bias": rng.normal(size=4).astype(np.float16),
    "ids": rng.integers(0, 99, (2, 3)),
    "scale": np.float32(rng.normal()),
  }


def _write_npz(folder):
  np.savez(folder / "x.npz", **_tensors())


def _write_index(folder):
  tensors = _tensors()
  names = list(tensors)
  places = {}
  for part in range(2):
    file = f"model-{part + 1:05}-of-00002.safetensors"
    save_file({n: np.asarray(tensors[n]) for n in names[part::2]}, folder / file)
    places |= {n: file for n in names[part::2]}
  (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))


def _write_gguf(folder):
  rng = np.random.default_rng(0)
  words = ["<unk>", "<s>", "</s>", "▁", "a", "b", "ab", "▁ab"]
  writer = gguf.GGUFWriter(folder / "x.gguf", "llama")
  writer.add_block_count(1)
  writer.add_context_length(16)
  writer.add_embedding_length(32)
  writer.add_feed_forward_length(32)
  writer.add_head_count(2)
  writer.add_head_count_kv(1)
  writer.add_layer_norm_rms_eps(1e-5)
  writer.add_tokenizer_model("llama")
  writer.add_token_list(words)
  writer.add_token_scores([0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0, -5.0])
  writer.add_token_types([2, 3, 3, 1, 1, 1, 1, 1])
  writer.add_bos_token_id(1)
  writer.add_eos_token_id(2)
  writer.add_add_bos_token(True)
  writer.add_tensor("token_embd.weight", rng.normal(size=(8, 32)).astype(np.float32))
  writer.add_tensor("output_norm.weight", np.ones(32, np.float32))
  packed = gguf.quants.quantize(rng.normal(size=(32, 32)), gguf.GGMLQuantizationType.Q8_0)
  writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()


def _read_gguf(folder):
  from vlx.data.tokenizers import public

  file = open_gguf(folder / "x.gguf")
  tokenizer = public.from_gguf(file.metadata)
  texts = tokenizer and [tokenizer.tokens("ab a c"), tokenizer.vocab_size, tokenizer.stop_ids]
  layout = llama.from_gguf(file)
  more = dict(system=repr(layout.system), texts=texts, metadata=repr(file.metadata))
  return arrays(file, numbers(folder), **more)


def _write_meta(folder):
  for part in range(2):
    shutil.copy(PARITY / f"llama_meta.{part:02}.pth", folder / f"consolidated.{part:02}.pth")
  params = dict(dim=32, multiple_of=16, n_heads=4, n_kv_heads=2, n_layers=3, norm_eps=1e-5)
  params |= dict(ffn_dim_multiplier=0.56, vocab_size=50)
  (folder / "params.json").write_text(json.dumps(params))


def read_model(path: pathlib.Path, texts=()) -> Content:
  """All that a checkpoint gives."""
  found = load.load(path)
  said = found.tokenizer and (
    [found.tokenizer.tokens(text) for text in texts],
    found.tokenizer.stop_ids,
  )
  values = {n: np.asarray(x).tobytes() for n, x in flatten(found.variables).items()}
  form = repr(found.system), found.image_transform, said
  return Content(form, values, tuple(numbers(path)))


def _read_arctic(folder) -> Content:
  """Which is no model by itself."""
  found = load.open_checkpoint(folder / "x.npz")
  one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  read = found.read(
    {n: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=one) for n, x in found.shapes.items()}
  )
  values = {n: np.asarray(x).tobytes() for n, x in read.items()}
  return Content(repr(found.system), values, tuple(numbers(folder)))


def numbers(folder: pathlib.Path):
  """The bytes of arrays in the files of a folder, where these can be opened."""
  for file in folder.iterdir():
    with contextlib.suppress(Exception):
      if file.suffix == ".gguf":
        yield from (t.data.tobytes() for t in gguf.GGUFReader(file).tensors)
      elif file.suffix == ".npz":
        yield from (np.load(file)[name].tobytes() for name in np.load(file))
      elif file.suffix in (".pth", ".pkl") and zipfile.is_zipfile(file):
        yield from (x for n, x in m.members(file.read_bytes()) if "/data/" in n)
      else:
        opened = load._open(file)
        yield from (np.asarray(opened.fetch(n)).tobytes() for n in opened.shapes)


def _tf_index(data, rng):
  """An index whose entries are others, and whose checksums are right."""
  kind, entries = m.of_entries(list(tf_bundle._table(data)), rng)
  return f"entries: {kind}", tf_tables.table(entries)


def _write_tf(folder):
  tf_tables.write(
    folder, {f"x/{name}": x for name, x in _tensors().items() if name != "encoder.bias"}
  )


def _write_arctic(folder):
  np.savez(folder / "x.npz", **parameters(OPTIONS))
  (folder / "x.npz.pkl").write_bytes(pickle.dumps(OPTIONS, 2))


def _npz_headers(data, rng):
  """Members whose headers are damaged."""

  def header(content, rng):
    out = io.BytesIO(content)
    np.lib.format.read_magic(out)
    np.lib.format.read_array_header_1_0(out)
    size = out.tell()
    kind, damaged = m.of_bytes(content[10:size], rng)
    return kind, content[:8] + len(damaged).to_bytes(2, "little") + damaged + content[size:]

  return m.of_zip(data, rng, header)


_torch = lambda folder: arrays(open_torch(folder / "x.pth"), numbers(folder))

READERS = {
  "safetensors": Reader(
    lambda folder: save_file({n: np.asarray(x) for n, x in _tensors().items()}, folder / "x"),
    lambda folder: arrays(open_safetensors(folder / "x")),
    {"x": (m.of_bytes, m.of_header)},
  ),
  "torch zip": Reader(
    _copied("torch_zip.pth", "x.pth"), _torch, {"x.pth": (m.of_bytes, m.of_zip)}
  ),
  "torch legacy": Reader(_copied("torch_legacy.pth", "x.pth"), _torch, {"x.pth": (m.of_bytes,)}),
  "torch script": Reader(
    _copied("torch_script.pt", "x.pth"), _torch, {"x.pth": (m.of_bytes, m.of_zip)}
  ),
  "torch module": Reader(
    _copied("dvae/encoder.pkl", "x.pth"), _torch, {"x.pth": (m.of_bytes,)}
  ),
  "npz": Reader(
    _write_npz,
    lambda folder: arrays(open_npz(folder / "x.npz")),
    {"x.npz": (m.of_bytes, m.of_zip, _npz_headers)},
  ),
  "compressed npz": Reader(
    lambda folder: np.savez_compressed(folder / "x.npz", **_tensors()),
    lambda folder: arrays(open_npz(folder / "x.npz")),
    {"x.npz": (m.of_bytes,)},
    silent=frozenset(),
  ),
  "arctic": Reader(
    _write_arctic,
    _read_arctic,
    {"x.npz.pkl": (m.of_bytes,), "x.npz": (m.of_zip,)},
  ),
  "gguf": Reader(_write_gguf, _read_gguf, {"x.gguf": (m.of_bytes,)}),
  "meta": Reader(
    _write_meta,
    read_model,
    {"params.json": (m.of_json, m.of_bytes), "*.pth": (m.of_bytes, m.of_zip)},
  ),
  "index": Reader(
    _write_index,
    lambda folder: arrays(load._open(folder / INDEX)),
    {INDEX: (m.of_json, m.of_json, m.of_bytes), "*.safetensors": (m.of_header,)},
  ),
  "tf bundle": Reader(
    _write_tf,
    lambda folder: arrays(open_tf_bundle(folder / "bert_model.ckpt.index")),
    {"*.index": (m.of_bytes, _tf_index, _tf_index), "*.data-*": (m.of_bytes,)},
  ),
}  # fmt: skip
