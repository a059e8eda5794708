"""Figures of a public CLIP: a Hugging Face folder, measured through the evaluators and by hand."""

import dataclasses
import json
import types

import jax
import numpy as np
import pytest
from PIL import Image
from safetensors import numpy as safetensors

import vlx
from tests import contract
from vlx.core.config import build
from vlx.core.errors import UserError
from vlx.data.tokenizers import trained as tokenizers
from vlx.data.transforms import preprocess
from vlx.evaluate.measure import measure_on
from vlx.evaluate.tasks.templates import IMAGENET
from vlx.models.contrastive.clip import CLIP
from vlx.pretrained import clip, tables

WORDS = 600
CAPTIONS = {
  "a red square": "red",
  "a square of crimson": "red",
  "something blue": "blue",
  "a green field": "green",
  "grass": "green",
}
COLORS = {"red": (220, 30, 40), "blue": (20, 60, 200), "green": (30, 180, 60)}


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
  """What `save_pretrained` of a tiny CLIPModel and its processor leave, written by the tables."""
  folder = tmp_path_factory.mktemp("clip")
  tower = dict(
    width=24, depth=2, num_heads=3, mlp_dim=40, activation="quick_gelu", layer_norm_epsilon=1e-5
  )
  system = build(
    CLIP,
    dict(
      image=dict(image_size=16, patch_size=8, patch_bias=False, pre_norm=True, **tower),
      text=dict(vocab_size=WORDS, context_length=24, **tower),
      embed_dim=12,
    ),
    "model",
  )
  config, layout = clip.to_hugging_face(system)
  (folder / "config.json").write_text(json.dumps(config))
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda s: np.float32(rng.normal(0, 0.3, s.shape)), contract.shapes(system)
  )
  safetensors.save_file(dict(tables.export(layout.rows, variables)), folder / "model.safetensors")
  tokenizers.train_bpe([*CAPTIONS, *IMAGENET], WORDS).save(folder / "tokenizer.json")
  (folder / "preprocessor_config.json").write_text(json.dumps({"size": 16, "crop_size": 16}))
  return folder


def write_images(folder, with_labels):
  rng, lines = np.random.default_rng(1), []
  (folder / "val").mkdir()
  for i in range(13):
    caption = list(CAPTIONS)[i % len(CAPTIONS)]
    noise = rng.normal(COLORS[CAPTIONS[caption]], 40, (20 + i, 33, 3))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / "val" / f"{i}.png")
    label = {"label": CAPTIONS[caption]} if with_labels else {}
    lines.append(json.dumps({"file_name": f"{i}.png", "caption": caption, **label}))
  (folder / "val" / "metadata.jsonl").write_text("\n".join(lines))
  return [json.loads(line) for line in lines]


def unit(x):
  return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize("with_labels", [True, False])
def test_figures_are_those_of_the_protocol(model_folder, tmp_path, with_labels):
  """Images one by one; each prompt normalised, their mean, normalised; a miss where anything is
  as good.
  """
  model, records = vlx.load(model_folder), write_images(tmp_path, with_labels)
  found = measure_on(model, f"folder:{tmp_path}", "val")

  ops = preprocess.parse(model.image_transform)
  encode_image, encode_text = jax.jit(model.system.embed_image), jax.jit(model.system.embed_text)
  files = [(tmp_path / "val" / r["file_name"]).read_bytes() for r in records]
  pixels = [ops.finish({"image": file}, None)["image"] for file in files]
  image = unit(np.concatenate([encode_image(model.variables, x[None]) for x in pixels]))
  tokens = lambda texts: model.tokenizer.encode_batch(texts, 24)
  embed = lambda texts: unit(np.asarray(encode_text(model.variables, *tokens(texts))))

  def share(scores, right, k):
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)
    return 100 * (((scores >= best) & ~right).sum(1) < k).mean()

  field, expected = "label" if with_labels else "caption", {}
  classes = sorted({r[field] for r in records})
  weights = np.stack([unit(embed([t.format(c) for t in IMAGENET]).mean(0)) for c in classes])
  right = np.array([[r[field] == c for c in classes] for r in records])
  for k in (1, 5):
    expected[f"zero_shot/val/top{k}"] = share(image @ weights.T, right, k)
  captions = sorted(CAPTIONS)
  scores = image @ embed(captions).T
  right = np.array([[r["caption"] == c for c in captions] for r in records])
  for k in (1, 5, 10):
    expected[f"retrieval/val/image_to_text_r{k}"] = share(scores, right, k)
    expected[f"retrieval/val/text_to_image_r{k}"] = share(scores.T, right.T, k)
  assert found == pytest.approx(expected)
  assert 0 < found["retrieval/val/image_to_text_r1"] < 100  # there is something to get wrong


def test_images_of_several_captions_are_not_classified(model_folder, tmp_path):
  records = write_images(tmp_path, False)
  lines = [json.dumps({**r, "caption": [r["caption"], "grass"]}) for r in records]
  (tmp_path / "val" / "metadata.jsonl").write_text("\n".join(lines))
  found = measure_on(vlx.load(model_folder), f"folder:{tmp_path}", "val")
  assert {key.split("/")[0] for key in found} == {"retrieval"}


@dataclasses.dataclass(frozen=True)
class Nothing:
  """A system that can do nothing that is measured."""

  def init(self, rng):
    return {"params": {}, "state": {}}


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(tokenizer=None), "without a tokenizer"),
    (
      dict(tokenizer=types.SimpleNamespace(vocab_size=WORDS + 1)),
      "has 601 tokens but the model 600",
    ),
    (dict(system=Nothing()), "vlx has no evaluator for a Nothing"),
  ],
)
def test_what_cannot_be_measured_is_told(model_folder, tmp_path, change, message):
  write_images(tmp_path, False)
  model = dataclasses.replace(vlx.load(model_folder), **change)
  with pytest.raises(UserError, match=message):
    measure_on(model, f"folder:{tmp_path}", "val")


def test_an_image_that_is_not_there_is_told(model_folder, tmp_path):
  write_images(tmp_path, True)
  (tmp_path / "val" / "0.png").unlink()
  with pytest.raises(UserError, match="0.png: .*No such file"):
    measure_on(vlx.load(model_folder), f"folder:{tmp_path}", "val")


def test_the_eighty_prompts():
  assert len(set(IMAGENET)) == 80 and all(prompt.count("{}") == 1 for prompt in IMAGENET)
