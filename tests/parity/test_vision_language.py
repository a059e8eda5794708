"""ViT and CLIP against their references, by the layouts of public files; the tables against
these files.
"""

import jax
import jax.numpy as jnp
import pytest
from recorded import Recorded, assert_parity, assert_returned, named_shapes

from tests import contract
from vlx.core.config import build
from vlx.core.errors import UserError
from vlx.models.contrastive import clip as clip_module
from vlx.models.contrastive.clip import CLIP
from vlx.models.contrastive.clip import published_size as clip_size
from vlx.models.vision.vit import VisionTransformer, ViT
from vlx.models.vision.vit import published_size as vit_size
from vlx.pretrained import clip, tables, vit


def hidden_of(sown):
  return sown["transformer"]["blocks"]["hidden"][0]


def vit_layout(recorded, case):
  return (
    vit.from_hugging_face(recorded.config) if case == "hf" else vit.from_shapes(recorded.shapes)
  )


def assert_hidden(found, expected):
  """Layer by layer: each has a largest magnitude of its own."""
  for one, other in zip(found, expected, strict=True):
    assert_parity(one, other)


@pytest.mark.parametrize("case", ["hf", "timm", "vit_jax", "big_vision", "big_vision_gap"])
def test_vit(case):
  recorded = Recorded("vit", case)
  layout = vit_layout(recorded, case)
  variables = recorded.load_system(layout)

  @jax.jit
  def run(variables, image):
    _, sown = layout.system.network.apply(
      {"params": variables["params"]}, image, mutable=["intermediates"]
    )
    return layout.system.class_logits(variables, image), hidden_of(sown["intermediates"]["tower"])

  logits, hidden = run(variables, recorded.inputs["image"])
  assert_parity(logits, recorded.outputs["logits"])
  assert_hidden(hidden, recorded.outputs["hidden"])
  if "wide" in recorded.inputs:  # positions resampled
    assert_parity(
      jax.jit(layout.system.class_logits)(variables, recorded.inputs["wide"]),
      recorded.outputs["wide"],
    )
  if not layout.aliases:
    assert_returned(layout.rows, variables, recorded.weights)


@pytest.mark.parametrize(
  "file, case",
  [
    ("clip_hf", "greatest"),
    ("clip_hf", "first_eos"),
    ("clip_openai", "open_clip"),
    ("clip_openai", "openai"),
    ("clip_openai", "open_clip_config"),
    ("clip_resnet", "resnet"),
  ],
)
def test_clip(file, case):
  recorded = Recorded(file, case)
  if file == "clip_hf":
    layout = clip.from_hugging_face(recorded.config)
  elif case == "open_clip_config":
    layout = clip.from_open_clip({"model_cfg": recorded.config}, recorded.shapes)
  else:
    layout = clip.from_shapes(recorded.shapes)
  system, variables = layout.system, recorded.load_system(layout)

  @jax.jit
  def run(variables, image, text, text_mask):
    _, sown = system.network.apply(
      {"params": variables["params"], **variables["state"]},
      image,
      text,
      text_mask,
      mutable=["intermediates"],
      capture_intermediates=case == "resnet",
    )
    image, text = (
      system.embed_image(variables, image),
      system.embed_text(variables, text, text_mask),
    )
    if file == "clip_hf":
      unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
      image, text = unit(image), unit(text)
    scale = system.network.apply({"params": variables["params"]}, method="scale")
    logits = scale * system.similarity(image, text)
    return dict(image=image, text=text, logits=logits), sown["intermediates"]

  found, sown = run(variables, *(recorded.inputs[x] for x in ("image", "text", "text_mask")))
  for name, x in found.items():
    assert_parity(x, recorded.outputs[name])
  # What stands behind the end of a text is nobody's business.
  real = recorded.inputs["text_mask"]
  assert_hidden(hidden_of(sown["text"])[:, real], recorded.outputs["text_hidden"][:, real])
  if case == "resnet":
    ends = {int(name[5]): name for name in sorted(sown["image"]) if name.startswith("stage")}
    for stage, name in ends.items():  # the last block of each
      assert_parity(
        sown["image"][name]["__call__"][0], recorded.outputs[f"image_hidden{stage + 1}"]
      )
  else:
    assert_hidden(hidden_of(sown["image"]), recorded.outputs["image_hidden"])
  if case == "first_eos":  # positions resampled
    encoded = jax.jit(system.embed_image)(variables, recorded.inputs["wide"])
    assert_parity(encoded, recorded.outputs["wide"])
  unread = {row.public for row in layout.rows if not row.name}
  weights = {k: v for k, v in recorded.weights.items() if k not in unread}
  assert_returned(layout.rows, variables, weights)


S = jax.ShapeDtypeStruct


def batch(size):
  return {
    "image": S((1, size, size, 3), jnp.float32),
    "text": S((1, 77), jnp.int32),
    "text_mask": S((1, 77), jnp.bool_),
  }


class Fits(Exception):
  pass


def assert_covers(layout, published, system):
  """Names and shapes of file and model fit exactly, both ways, and the system is the published
  one.
  """
  assert layout.system == system
  wanted = contract.shapes(system)
  unread = {row.public for row in layout.rows if not row.name}
  found = {
    tables.renamed(name, layout.aliases): shape
    for name, shape in published.items()
    if name not in unread
  }
  assert tables.public_shapes(layout.rows, wanted) == found

  def fetch(name):
    raise Fits  # what does not is told before the first tensor is read

  with pytest.raises(Fits):
    tables.read(layout.rows, wanted, published, fetch, aliases=layout.aliases)


B16 = dict(image_size=224, **vit_size("B/16"))
HF_VIT = dict(
  num_channels=3,
  qkv_bias=True,
  hidden_size=768,
  num_hidden_layers=12,
  num_attention_heads=12,
  intermediate_size=3072,
  image_size=224,
  patch_size=16,
  hidden_act="gelu",
  layer_norm_eps=1e-12,
  id2label={str(i): str(i) for i in range(1000)},
)


def test_vit_tables_are_those_of_the_public_files():
  hf = VisionTransformer(**B16, activation="gelu", layer_norm_epsilon=1e-12, resampling="cubic")
  assert_covers(vit.from_hugging_face(HF_VIT), named_shapes("vit_b16_hf"), ViT(hf, 1000))
  names = named_shapes("vit_b16_timm")
  timm = VisionTransformer(**B16, activation="gelu", layer_norm_epsilon=1e-6)
  assert_covers(vit.from_shapes(names), names, ViT(timm, 1000))
  names = named_shapes("vit_b16_npz")
  assert_covers(vit.from_shapes(names), names, ViT(VisionTransformer(**B16), 21843, 768))


def published(name, **changes):
  section = clip_size(name)
  section["image"] |= changes.pop("image", {})
  return build(CLIP, section, "model")


def test_clip_tables_are_those_of_the_public_files():
  # A file of the first days: all that differs from B/32 stands in it.
  hf = dict(
    projection_dim=512, text_config={"eos_token_id": 2}, vision_config={}, text_config_dict=None
  )
  # The initial spread of a public model's parameters does not matter.
  b32 = published("B/32", image=dict(resampling="cubic", embedding_std=0.02))
  assert_covers(clip.from_hugging_face(hf), named_shapes("clip_vit_b32_hf"), b32)
  names = named_shapes("clip_vit_b32_openai")
  assert_covers(clip.from_shapes(names), names, published("B/32", image=dict(embedding_std=0.02)))


@pytest.mark.parametrize("name", clip_module.RESNETS)
def test_clips_residual_networks_are_those_of_the_public_files(name):
  """Blocks, widths, heads, resolution: all of it from names and shapes."""
  names = named_shapes(f"clip_{name.lower()}_openai")
  layout = clip.from_shapes(names)
  assert_covers(layout, names, published(name))
  size = clip_module.RESNETS[name][2]
  assert f"central_crop({size}, half='even')" in clip.preprocess(layout.system)
  # Trained by open_clip: other weights of the same names, said to be so by a config beside them.
  constants = ("input_resolution", "context_length", "vocab_size")
  names = {k: v for k, v in names.items() if k not in constants}
  stage_sizes, stem_width, _, embed_dim, text_width = clip_module.RESNETS[name]
  model = dict(
    embed_dim=embed_dim,
    vision_cfg=dict(image_size=size, layers=list(stage_sizes), width=stem_width, patch_size=None),
    text_cfg=dict(context_length=77, vocab_size=49408, width=text_width, heads=text_width // 64),
  )
  quick = clip.from_open_clip({"model_cfg": {**model, "quick_gelu": True}}, names)
  assert quick.system == published(name) and quick.rows == layout.rows
  layout = clip.from_open_clip({"model_cfg": model}, names)
  assert layout.system.text.activation == "gelu" and layout.system.image == published(name).image


def test_gelu_is_quick_in_openais_own_files_alone():
  names = named_shapes("clip_vit_b32_openai")
  assert clip.from_shapes(names).system.text.activation == "quick_gelu"
  constants = ("input_resolution", "context_length", "vocab_size")
  others = {f"module.{k}": v for k, v in names.items() if k not in constants}
  layout = clip.from_shapes(others)
  assert layout.system.image.activation == layout.system.text.activation == "gelu"
  assert tables.renamed("module.visual.proj", layout.aliases) == "visual.proj"


def test_shapes_of_another_family_are_not_taken():
  for file in ("bert_base", "llama_7b", "resnet50", "vgg16", "clip_vit_b32_hf"):
    assert vit.from_shapes(named_shapes(file)) is None
    assert clip.from_shapes(named_shapes(file)) is None
  assert clip.from_shapes(named_shapes("vit_b16_timm")) is None
  assert vit.from_shapes(named_shapes("clip_vit_b32_openai")) is None


@pytest.mark.parametrize("family, file, case", [(vit, "vit", "hf"), (clip, "clip_hf", "first_eos")])
def test_a_config_written_for_hugging_face_reads_as_the_same_system(family, file, case):
  layout = family.from_hugging_face(Recorded(file, case).config)
  config, back = family.to_hugging_face(layout.system)
  assert family.from_hugging_face(config).system == layout.system == back.system
  assert back.rows == layout.rows


@pytest.mark.parametrize(
  "change, message",
  [
    ({"hidden_size": None}, "config.json has no hidden_size"),
    ({"hidden_size": -768}, "hidden_size is -768, not a positive whole number"),
    ({"hidden_size": "768"}, "hidden_size is '768', not a positive whole number"),
    ({"hidden_size": 770}, "hidden_size 770 does not divide by num_attention_heads 12"),
    ({"num_hidden_layers": True}, "num_hidden_layers is True, not a positive whole number"),
    ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan, not a positive number"),
    ({"hidden_act": "relu"}, "hidden_act is 'relu'; vlx knows 'gelu'"),
    ({"image_size": 225}, "image_size 225 does not divide by patch_size 16"),
    ({"qkv_bias": False}, "qkv_bias is False; vlx supports True only"),
  ],
)
def test_an_absurd_config_is_told(change, message):
  with pytest.raises(UserError, match=message):
    vit.from_hugging_face({**HF_VIT, **change})


@pytest.mark.parametrize(
  "change, message",
  [
    (
      {"vision_config": {"hidden_size": 770}},
      "vision_config.hidden_size 770 does not divide by vision_config",
    ),
    (
      {"text_config": {"vocab_size": 0}},
      "text_config.vocab_size is 0, not a positive whole number",
    ),
    (
      {"text_config": {}, "text_config_dict": {"hidden_act": "relu"}},
      "text_config.hidden_act is 'relu'",
    ),
    (
      {"vision_config": {"num_channels": 4}},
      "vision_config.num_channels is 4; vlx supports 3 only",
    ),
    ({"projection_dim": 2.5}, "projection_dim is 2.5"),
  ],
)
def test_an_absurd_section_is_told(change, message):
  with pytest.raises(UserError, match=message):
    clip.from_hugging_face(change)


def test_what_hugging_face_has_no_place_for_is_told():
  with pytest.raises(UserError, match="needs pool to be 'cls', not 'mean'"):
    vit.to_hugging_face(ViT(VisionTransformer(**B16, pool="mean"), 10))
  with pytest.raises(UserError, match="needs representation_size to be 0, not 768"):
    vit.to_hugging_face(ViT(VisionTransformer(**B16), 10, 768))
  with pytest.raises(UserError, match="no ResNet"):
    clip.to_hugging_face(published("RN50"))


def test_a_truncated_file_is_told():
  names = named_shapes("clip_vit_b32_openai")
  del names["visual.positional_embedding"]
  with pytest.raises(UserError, match="the checkpoint has no visual.positional_embedding"):
    clip.from_shapes(names)
