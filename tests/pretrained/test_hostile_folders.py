"""Folders that somebody damaged, or made to do harm: what does not fit is told in a line, at once, and
what a field says is done.
"""

import json

import jax
import numpy as np
import pytest

from vlx import pretrained
from vlx.core.errors import UserError
from vlx.data.transforms import preprocess
from vlx.pretrained import clip, fields, llama, preprocessor, tables, vit
from vlx.pretrained.formats.safetensors import write_safetensors
from vlx.pretrained.load import module, variable_shapes

TOWER = dict(
  hidden_size=8,
  num_hidden_layers=2,
  num_attention_heads=2,
  intermediate_size=16,
  hidden_act="gelu",
  layer_norm_eps=1e-5,
)
CONFIGS = dict(
  bert=dict(**TOWER, vocab_size=30, max_position_embeddings=12, type_vocab_size=2),
  vit=dict(**TOWER, image_size=8, patch_size=4, id2label={"0": "a", "1": "b", "2": "c"}),
  clip=dict(
    projection_dim=4,
    vision_config=dict(**TOWER, image_size=8, patch_size=4),
    text_config=dict(**TOWER, vocab_size=30, max_position_embeddings=12),
  ),
  llama={
    **{name: value for name, value in TOWER.items() if name != "layer_norm_eps"},
    "vocab_size": 30,
    "max_position_embeddings": 12,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
  },
)
META = dict(dim=8, n_layers=2, n_heads=2, multiple_of=4, norm_eps=1e-5, ffn_dim_multiplier=1.0)
ABSURD = ([], {"a": 1}, "x", float("nan"), float("inf"), -1, 0, 1.5, True, 10**12, 10**400)


def leaves(config, at=()):
  for name, value in config.items():
    if isinstance(value, dict) and name != "id2label":
      yield from leaves(value, (*at, name))
    else:
      yield (*at, name)


def changed(config, path, value):
  first, *rest = path
  return {**config, first: changed(config[first], rest, value) if rest else value}


def numbers(config):
  return [path for path in leaves(config) if type(value_at(config, path)) in (int, float)]


def value_at(config, path):
  for name in path:
    config = config[name]
  return config


@pytest.fixture(params=CONFIGS)
def folder(request, tmp_path):
  """(its path, its config)."""
  config = dict(CONFIGS[request.param], model_type=request.param)
  layout = module(request.param).from_hugging_face(config)
  zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), variable_shapes(layout.system))
  write_safetensors(
    tmp_path / "model.safetensors",
    tables.public_shapes(layout.rows, zeros),
    tables.export(layout.rows, zeros),
  )
  (tmp_path / "config.json").write_text(json.dumps(config))
  return tmp_path, config


def test_absurd_fields_of_a_config_are_told_by_their_names(folder):
  path, config = folder
  pretrained.open_checkpoint(path)
  for field in leaves(config):
    for value in ABSURD:
      if (field[-1], value) in (
        ("id2label", {"a": 1}),
        ("rope_theta", 1.5),
        ("rope_theta", 10**12),
      ):
        continue
      (path / "config.json").write_text(json.dumps(changed(config, field, value)))
      with pytest.raises(UserError, match=field[-1].replace("model_type", "model type")):
        pretrained.open_checkpoint(path)


@pytest.mark.parametrize("family", CONFIGS)
def test_sizes_that_no_model_has_build_nothing(family):
  """Neither a million layers, nor a mask of all pairs of positions."""
  config = CONFIGS[family]
  for field in numbers(config):
    for size in (10**5, 10**8, 2**31 - 1):
      if isinstance(value_at(config, field), int):
        layout = None
        try:
          layout = module(family).from_hugging_face(changed(config, field, size))
        except UserError as e:
          assert field[-1] in str(e) or "patches" in str(e) or "hidden_size" in str(e)
        if layout:  # a width, or words: nothing is allocated
          variable_shapes(layout.system)


def test_rotations_of_a_billion_features_are_not_made():
  for read, config, name in (
    (llama.from_hugging_face, CONFIGS["llama"], "hidden_size"),
    (llama.from_meta, META, "dim"),
  ):
    variable_shapes(read({**config, name: 2**20}).system)
    with pytest.raises(UserError, match=f"{name} is 1073741824"):
      read({**config, name: 2**30})


@pytest.mark.parametrize("name", META)
def test_absurd_params_of_metas_are_told(name):
  llama.from_meta(META)
  for value in (None, *ABSURD):
    if (name, value) == ("ffn_dim_multiplier", 1.5):
      continue
    with pytest.raises(UserError, match=name):
      llama.from_meta({**META, name: value})


def test_a_number_that_python_does_not_write_is_shown():
  with pytest.raises(UserError, match="a number of thousands of digits"):
    fields.positive_int({"vocab_size": 10**5000}, "vocab_size")
  nested = ()
  for _ in range(200):
    nested = (nested, nested)
  with pytest.raises(UserError, match="n_layers_lstm"):
    fields.must_be({"n_layers_lstm": nested}, "n_layers_lstm", 1)


# Preprocessing.

PREPROCESSOR = dict(
  do_resize=True,
  size={"height": 4, "width": 4},
  resample=2,
  do_center_crop=False,
  do_rescale=True,
  rescale_factor=1 / 255,
  do_normalize=True,
  image_mean=[0.5, 0.25, 0.125],
  image_std=[0.5, 0.25, 1.0],
)
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)


def prepared(**change):
  """What the ops make of the pixels, `decode` left out."""
  ops = preprocessor.image_ops({**PREPROCESSOR, **change}).removeprefix("decode|")
  return preprocess.parse(ops).finish({"image": PIXELS}, None)["image"]


@pytest.mark.parametrize(
  ("change", "factor", "normalizes"),
  [
    ({}, 1 / 255, True),
    (dict(do_normalize=False), 1 / 255, False),
    (dict(do_rescale=False), 1, True),
    (dict(do_rescale=False, do_normalize=False), 1, False),
    (dict(rescale_factor=1 / 127.5), 1 / 127.5, True),
    (dict(rescale_factor=None, do_normalize=None, do_pad=None, crop_size=None), 1 / 255, True),
    (dict(do_normalize=False, image_mean=None, image_std=[0, 0, 0]), 1 / 255, False),
  ],
)
def test_steps_that_are_left_out_are_left_out(change, factor, normalizes):
  wanted = PIXELS * np.float64(factor)
  if normalizes:
    wanted = (wanted - PREPROCESSOR["image_mean"]) / PREPROCESSOR["image_std"]
  np.testing.assert_allclose(prepared(**change), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  "change",
  [
    dict(image_std=[0.5, 0.0, 0.5]),
    dict(image_std=[0.5, float("nan"), 0.5]),
    dict(image_std=[0.5, -0.5, 0.5]),
    dict(image_std=[1e-300] * 3),
    dict(image_mean=[float("inf")] * 3),
    dict(image_mean=[10**400] * 3),
    dict(image_mean="abc"),
    dict(rescale_factor=0),
    dict(rescale_factor=float("nan")),
    dict(rescale_factor=[1]),
    dict(do_pad=True),
    dict(do_flip_channel_order=True),
    dict(rescale_offset=True),
    dict(crop_pct=0.9),
    dict(do_normalize="false"),
    dict(do_rescale=0),
    dict(resample=[2]),
    dict(resample=True),
    dict(size={"height": 10**9, "width": 4}),
    dict(size={"shortest_edge": [4]}),
    dict(do_center_crop=True, crop_size={"height": [], "width": 4}),
    dict(do_center_crop=True, crop_size=10**9),
  ],
)
def test_steps_that_vlx_does_not_take_are_told(change):
  (name,) = set(change) - {"do_center_crop"}
  with pytest.raises(UserError, match=f"preprocessor_config.json: {name} is"):
    preprocessor.image_ops({**PREPROCESSOR, **change})


@pytest.mark.parametrize(
  "change",
  [
    dict(crop_size=5),
    dict(crop_size={"height": 5, "width": 5}),
    dict(size={"height": 9, "width": 4}, crop_size=5),
    dict(size=4, crop_size=5),
  ],
)
def test_no_larger_square_is_cut(change):
  """Hugging Face's pad with black."""
  config = {**PREPROCESSOR, "size": {"shortest_edge": 4}, "do_center_crop": True, **change}
  with pytest.raises(UserError, match="crop_size is .*does not pad"):
    preprocessor.image_ops(config)
  assert "central_crop(4)" in preprocessor.image_ops({**config, "crop_size": 4})


def test_a_number_for_the_size_is_of_the_side_that_the_file_says():
  ops = lambda **change: preprocessor.image_ops({**PREPROCESSOR, "size": 4, **change})
  assert "resize(4, 4" in ops() and "resize(4, 4" in ops(default_to_square=True)
  assert "resize_small(4" in ops(default_to_square=False)
  assert "resize_small(4" in ops(do_center_crop=True, crop_size=4)
  with pytest.raises(UserError, match="default_to_square"):
    ops(default_to_square="no")


def test_fields_that_are_null_are_those_of_the_class():
  system = vit.from_hugging_face(CONFIGS["vit"]).system
  assert vit.preprocess(system, {"image_mean": None, "size": None}) == vit.preprocess(system)


@pytest.mark.parametrize(
  ("name", "value"),
  [
    ("mean", [0.5, 0.5]),
    ("mean", float("nan")),
    ("std", [0.5, 0, 0.5]),
    ("std", {"a": 1}),
    ("size", 9),
    ("size", [8, 10]),
    ("mode", "L"),
    ("interpolation", "bilinear"),
    ("resize_mode", ["squash"]),
    ("crop_pct", 0.9),
  ],
)
def test_the_preprocessing_of_open_clips_is_done_or_told(name, value):
  system = clip.from_hugging_face(CONFIGS["clip"]).system
  whole = dict(mean=0.5, std=[0.25] * 3, size=[8, 8], mode="RGB", interpolation=None)
  found = clip.open_clip_preprocess(system, {"preprocess_cfg": whole})
  assert found.endswith("normalize((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))")
  with pytest.raises(UserError, match=f"{name}.* (is|unknown) "):
    clip.open_clip_preprocess(system, {"preprocess_cfg": {**whole, name: value}})


def test_shapes_that_no_model_has_are_told():
  """Sizes of zero, tables of positions whose square is no mask, stages that double a width for ever."""
  assert fields.shape({"w": (2, 3)}, "w", 2) == (2, 3)
  for shape in ((0, 3), (2, 2**31)):
    with pytest.raises(UserError, match="no model's"):
      fields.shape({"w": shape}, "w", 2)
  with pytest.raises(UserError, match="number of positions"):
    fields.positions({"w": (2**20, 1)}, "w", 2)
  names = {f"layer{i}.0.conv1.weight": (4, 4, 3, 3) for i in range(1, 100)}
  names |= {"conv1.weight": (4, 3, 7, 7), "layer1.0.bn1.weight": (4,), "fc.weight": (3, 4)}
  with pytest.raises(UserError, match="99 layers"):
    module("resnet").from_shapes(names)
  names = {"encoder.blocks.group_1.block_1.res_path.conv_1.w": (1, 3, 3, 3)}
  names |= {"encoder.blocks.input.w": (3, 3, 7, 7), "decoder.blocks.input.w": (4, 9, 1, 1)}
  with pytest.raises(UserError, match="encoder.blocks.input.w: the width 3 does not divide"):
    module("dvae").from_shapes(names)
  block = {f"encoder.blocks.group_{10**8 * i}.block_1.w": (4,) for i in range(1, 20)}
  with pytest.raises(UserError, match="19 layers"):
    module("dvae").from_shapes(block)


def test_of_a_million_tensors_that_do_not_fit_some_are_named(monkeypatch):
  monkeypatch.setattr(tables, "_MAX_LINES", 10)
  with pytest.raises(UserError) as told:
    tables.read([], {}, {f"x{i}": (1,) for i in range(100)}, None)
  assert (
    str(told.value).splitlines()[-1] == "  and 90 more" and len(str(told.value).splitlines()) == 12
  )
