"""Names of CLIP's public files: Hugging Face's `CLIPModel`, and OpenAI's, which are open_clip's
too.

Hugging Face takes a text's feature at its greatest id where `eos_token_id` is 2 (a mistake of the
first configs: CLIP's end of text is the greatest), else at the first `eos_token_id`; vlx at the
last token that `text_mask` calls real. For a tokenized text all three are its end of text.
"""

import dataclasses
import math
import pathlib
from collections.abc import Mapping

from vlx.core.errors import UserError
from vlx.core.files import read_json
from vlx.data.tokenizers.trained import load_clip
from vlx.models.contrastive.clip import CLIP, CLIPTextEncoder, TextTransformer
from vlx.models.vision.modified_resnet import HEAD_DIM, ModifiedResNet
from vlx.models.vision.vit import VisionTransformer
from vlx.pretrained import fields, preprocessor
from vlx.pretrained.tables import CheckpointMap, Row, renamed
from vlx.pretrained.torch_rows import batch_norm, convolution, dense, layer_norm, transformer_block
from vlx.pretrained.vit import num_heads

ALIASES = ((r"^module\.", ""),)  # of models that were trained on several devices

_DENSE = ("o i -> i o", {})
_ONE_TOKEN, _ONE_TABLE = ("d -> 1 1 d", {}), ("n d -> 1 n d", {})
_HF_BLOCK = dict(
  norms=("layer_norm1", "layer_norm2"),
  attention=tuple(f"self_attn.{x}_proj." for x in "qkv"),
  out="self_attn.out_proj",
  mlp=("mlp.fc1", "mlp.fc2"),
)
_OPENAI_BLOCK = dict(
  norms=("ln_1", "ln_2"),
  attention=("attn.in_proj_",),
  out="attn.out_proj",
  mlp=("mlp.c_fc", "mlp.c_proj"),
)


def hugging_face_rows(image_heads: int, text_heads: int) -> list[Row]:
  image = "vision_model"
  return [
    Row("logit_scale", "params/logit_scale"),
    Row(f"{image}.embeddings.class_embedding", "params/image/cls", _ONE_TOKEN),
    Row(
      f"{image}.embeddings.position_embedding.weight", "params/image/position_embedding", _ONE_TABLE
    ),
    *convolution(f"{image}.embeddings.patch_embedding", "image/patch_embedding"),
    *layer_norm(f"{image}.pre_layrnorm", "image/pre_norm"),  # so misspelt
    *transformer_block(
      f"{image}.encoder.layers.{{layer}}", "image/transformer/blocks", image_heads, **_HF_BLOCK
    ),
    *layer_norm(f"{image}.post_layernorm", "image/final_norm"),
    Row("visual_projection.weight", "params/image_projection/kernel", _DENSE),
    *text_rows(text_heads),
    Row("text_projection.weight", "params/text_projection/kernel", _DENSE),
    Row(f"{image}.embeddings.position_ids", None),  # the constant 0, 1, 2, …, in older files
  ]


def text_rows(num_heads: int, *, ours: str = "text", public: str = "text_model") -> list[Row]:
  """Of Hugging Face's text tower, also by itself (`CLIPTextModel`)."""
  return [
    Row(f"{public}.embeddings.token_embedding.weight", f"params/{ours}/token_embedding/embedding"),
    Row(f"{public}.embeddings.position_embedding.weight", f"params/{ours}/position_embedding"),
    *transformer_block(
      f"{public}.encoder.layers.{{layer}}", f"{ours}/transformer/blocks", num_heads, **_HF_BLOCK
    ),
    *layer_norm(f"{public}.final_layer_norm", f"{ours}/final_norm"),
    Row(f"{public}.embeddings.position_ids", None),
  ]


def openai_rows(image: VisionTransformer | ModifiedResNet, text_heads: int) -> list[Row]:
  return [
    *(_vit_rows(image.num_heads) if isinstance(image, VisionTransformer) else _resnet_rows(image)),
    Row("token_embedding.weight", "params/text/token_embedding/embedding"),
    Row("positional_embedding", "params/text/position_embedding"),
    *transformer_block(
      "transformer.resblocks.{layer}", "text/transformer/blocks", text_heads, **_OPENAI_BLOCK
    ),
    *layer_norm("ln_final", "text/final_norm"),
    Row("text_projection", "params/text_projection/kernel"),
    Row("logit_scale", "params/logit_scale"),
    # Constants in OpenAI's own files.
    *(Row(name, None) for name in ("input_resolution", "context_length", "vocab_size")),
  ]


def _vit_rows(num_heads: int) -> list[Row]:
  return [
    Row("visual.class_embedding", "params/image/cls", _ONE_TOKEN),
    Row("visual.positional_embedding", "params/image/position_embedding", _ONE_TABLE),
    *convolution("visual.conv1", "image/patch_embedding"),
    *layer_norm("visual.ln_pre", "image/pre_norm"),
    *transformer_block(
      "visual.transformer.resblocks.{layer}", "image/transformer/blocks", num_heads, **_OPENAI_BLOCK
    ),
    *layer_norm("visual.ln_post", "image/final_norm"),
    Row("visual.proj", "params/image_projection/kernel"),
  ]


def _resnet_rows(tower: ModifiedResNet) -> list[Row]:
  rows = []
  for i in (1, 2, 3):
    rows += convolution(f"visual.conv{i}", f"image/conv{i}") + batch_norm(
      f"visual.bn{i}", f"image/norm{i}"
    )
  for stage, blocks in enumerate(tower.stage_sizes):
    for block in range(blocks):
      public, ours = f"visual.layer{stage + 1}.{block}", f"image/stage{stage}_block{block}"
      for i in (1, 2, 3):
        rows += convolution(f"{public}.conv{i}", f"{ours}/conv{i}")
        rows += batch_norm(f"{public}.bn{i}", f"{ours}/norm{i}")
      if block == 0:
        rows += convolution(f"{public}.downsample.0", f"{ours}/shortcut")
        rows += batch_norm(f"{public}.downsample.1", f"{ours}/shortcut_norm")
  public, ours, heads = "visual.attnpool", "image/attention_pool", {"h": tower.width // HEAD_DIM}
  rows.append(
    Row(f"{public}.positional_embedding", f"params/{ours}/position_embedding", _ONE_TABLE)
  )
  for theirs, name in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
    rows += [
      Row(f"{public}.{theirs}.weight", f"params/{ours}/{name}/kernel", ("(h e) d -> d h e", heads)),
      Row(f"{public}.{theirs}.bias", f"params/{ours}/{name}/bias", ("(h e) -> h e", heads)),
    ]
  return rows + dense(f"{public}.c_proj", "image_projection")


def from_hugging_face(
  config: Mapping, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> CheckpointMap:
  """Reads a `config.json` with the model type "clip"; its sections leave out what is B/32's.

  All such files have the same tensors: `shapes` is not used.
  """
  del shapes
  config = dict(config)
  for part in ("vision_config", "text_config"):
    # The first files have their sections under both names; where they differ, this one counts.
    section = {**fields.section(config, part), **fields.section(config, f"{part}_dict")}
    config |= {f"{part}.{name}": value for name, value in section.items()}
  fields.must_be(config, "vision_config.num_channels", 3)
  image_size, patch_size = fields.patches(
    config, "vision_config.image_size", "vision_config.patch_size", 224, 32
  )
  image = VisionTransformer(
    image_size=image_size,
    patch_size=patch_size,
    patch_bias=False,
    pre_norm=True,
    resampling="cubic",
    **_tower(config, "vision_config", 768, 12),
  )
  text = _text(config)
  system = CLIP(image, text, fields.positive_int(config, "projection_dim", 512))
  return CheckpointMap(system, hugging_face_rows(image.num_heads, text.num_heads))


def _text(config: Mapping) -> TextTransformer:
  return TextTransformer(
    vocab_size=fields.positive_int(config, "text_config.vocab_size", 49408),
    context_length=fields.length(config, "text_config.max_position_embeddings", 77),
    **_tower(config, "text_config", 512, 8),
  )


def text_encoder(config: Mapping) -> CLIPTextEncoder:
  """Reads a `config.json` of `CLIPTextModel`."""
  return CLIPTextEncoder(_text({f"text_config.{name}": value for name, value in config.items()}))


def empty_text(tokenizer: pathlib.Path, config: Mapping) -> tuple[int, ...]:
  """The ids of no text: start and end, and the padding that the tokenizer's files name.

  Args:
    tokenizer: the folder of its files.
    config: a `config.json` of `CLIPTextModel`.
  """
  words = load_clip(tokenizer)
  length = fields.length(config, "max_position_embeddings", 77)
  files = [tokenizer / name for name in ("tokenizer_config.json", "special_tokens_map.json")]
  told = [read_json(file).get("pad_token") for file in files if file.is_file()]
  token = next((t for t in told if t), None)
  token = token.get("content") if isinstance(token, Mapping) else token
  pad = words.end_id if token is None else words.id_of(token)
  if pad is None:
    raise UserError(f"{tokenizer}: the padding {fields.shown(token)} is no token of the vocabulary")
  return (words.start_id, words.end_id, *[pad] * (length - 2))


def text_config(text: TextTransformer, empty_text: tuple[int, ...]) -> dict:
  """The `config.json` of `CLIPTextModel`; the ids of the empty text are its start, end and padding."""
  return dict(
    architectures=["CLIPTextModel"],
    model_type="clip_text_model",
    vocab_size=text.vocab_size,
    hidden_size=text.width,
    intermediate_size=text.mlp_dim,
    num_hidden_layers=text.depth,
    num_attention_heads=text.num_heads,
    max_position_embeddings=text.context_length,
    hidden_act=fields.public_activation(text.activation),
    layer_norm_eps=text.layer_norm_epsilon,
    bos_token_id=empty_text[0],
    eos_token_id=empty_text[1],
    pad_token_id=empty_text[-1],
  )


def _tower(config: Mapping, part: str, width: int, num_heads: int) -> dict:
  """Fields that both towers have; the defaults are Hugging Face's."""
  width = fields.positive_int(config, f"{part}.hidden_size", width)
  num_heads = fields.positive_int(config, f"{part}.num_attention_heads", num_heads)
  fields.divides(f"{part}.hidden_size", width, f"{part}.num_attention_heads", num_heads)
  return dict(
    width=width,
    num_heads=num_heads,
    depth=fields.layers(config, f"{part}.num_hidden_layers", 12),
    mlp_dim=fields.positive_int(
      config, f"{part}.intermediate_size", 3072 if part == "vision_config" else 2048
    ),
    activation=fields.one_of(config, f"{part}.hidden_act", fields.ACTIVATIONS, "quick_gelu"),
    layer_norm_epsilon=fields.epsilon(config, f"{part}.layer_norm_eps", 1e-5),
    initialization="torch" if part == "vision_config" else "clip",
  )


def to_hugging_face(system: CLIP, end_id: int | None = None) -> tuple[dict, CheckpointMap]:
  """(config.json, CheckpointMap) of `CLIPModel`.

  Args:
    system: to export.
    end_id: the tokenizer's end of text, where `CLIPModel` takes a text's feature; without it the
      last of the vocabulary, as in CLIP's own.
  """
  what, image, text = "Hugging Face's CLIP", system.image, system.text
  if isinstance(image, ModifiedResNet):
    raise UserError(f"{what} has no ResNet")
  fields.exportable(what, system, loss_type="softmax")
  fields.exportable(
    what, image, pool="cls", stem=(), patch_bias=False, pre_norm=True, cls_position=True
  )
  fields.exportable(what, text, causal=True, pool="last", token_norm=0.0)

  def section(tower, kind, **own):
    return dict(
      model_type=kind,
      hidden_size=tower.width,
      intermediate_size=tower.mlp_dim,
      num_hidden_layers=tower.depth,
      num_attention_heads=tower.num_heads,
      projection_dim=system.embed_dim,
      hidden_act=fields.public_activation(tower.activation),
      layer_norm_eps=tower.layer_norm_epsilon,
      **own,
    )

  config = dict(
    architectures=["CLIPModel"],
    model_type="clip",
    projection_dim=system.embed_dim,
    vision_config=section(
      image,
      "clip_vision_model",
      image_size=image.image_size,
      patch_size=image.patch_size,
      num_channels=3,
    ),
    text_config=section(
      text,
      "clip_text_model",
      vocab_size=text.vocab_size,
      max_position_embeddings=text.context_length,
      bos_token_id=text.vocab_size - 2,
      eos_token_id=text.vocab_size - 1 if end_id is None else end_id,
    ),
  )
  return config, CheckpointMap(system, hugging_face_rows(image.num_heads, text.num_heads))


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap | None:
  """The system of OpenAI's files and open_clip's, by their names; None for what is neither.

  Their names are the same, their GELUs are not: quick in OpenAI's, known by three constants beside
  the weights, the erf's in open_clip's own models.
  """
  shapes = {renamed(name, ALIASES): shape for name, shape in shapes.items()}
  if not {"visual.conv1.weight", "token_embedding.weight", "text_projection"} <= shapes.keys():
    return None
  activation = "quick_gelu" if "input_resolution" in shapes else "gelu"
  shared = dict(activation=activation, layer_norm_epsilon=1e-5)
  shape = lambda name, axes: fields.shape(shapes, name, axes)
  if "visual.attnpool.positional_embedding" in shapes:
    image = _resnet_of(shapes)
  else:
    width, _, patch_size, _ = shape("visual.conv1.weight", 4)
    image = VisionTransformer(
      image_size=math.isqrt(fields.positions(shapes, "visual.positional_embedding", 2) - 1)
      * patch_size,
      patch_size=patch_size,
      patch_bias=False,
      pre_norm=True,
      width=width,
      num_heads=num_heads(width),
      depth=fields.count(shapes, r"visual\.transformer\.resblocks\.(\d+)\."),
      mlp_dim=shape("visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
      initialization="torch",
      **shared,
    )
  width, embed_dim = shape("text_projection", 2)
  text = TextTransformer(
    vocab_size=shape("token_embedding.weight", 2)[0],
    context_length=fields.positions(shapes, "positional_embedding", 2),
    width=width,
    num_heads=width // 64,
    depth=fields.count(shapes, r"transformer\.resblocks\.(\d+)\."),
    mlp_dim=shape("transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    **shared,
  )
  return CheckpointMap(CLIP(image, text, embed_dim), openai_rows(image, text.num_heads), ALIASES)


def from_open_clip(config: Mapping, shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap:
  """Reads an `open_clip_config.json` and the names beside it, which do not tell the GELU and the
  heads.
  """
  model = config.get("model_cfg")
  for part in ("vision_cfg", "text_cfg"):
    if not isinstance(model, Mapping) or not isinstance(model.get(part), Mapping):
      raise UserError(f"open_clip_config.json has no model_cfg with a {part}")
    section = {f"{part}.{name}": value for name, value in model[part].items()}
    model = {name: value for name, value in model.items() if name != part} | section
  foreign = sorted(name for name, value in model.items() if value and name not in OPEN_CLIP_FIELDS)
  layout = from_shapes(shapes)
  if foreign or layout is None:
    raise UserError(
      f"open_clip_config.json: vlx does not support {', '.join(foreign) or 'its towers'}"
    )
  system = layout.system
  image, text = system.image, system.text
  resnet = isinstance(image, ModifiedResNet)
  for name, found in {
    "embed_dim": system.embed_dim,
    "text_cfg.width": text.width,
    "text_cfg.layers": text.depth,
    "text_cfg.context_length": text.context_length,
    "text_cfg.vocab_size": text.vocab_size,
    "vision_cfg.width": image.stem_width if resnet else image.width,
    "vision_cfg.layers": list(image.stage_sizes) if resnet else image.depth,
    "vision_cfg.image_size": image.image_size,
    **({} if resnet else {"vision_cfg.patch_size": image.patch_size}),
  }.items():
    if model.get(name, found) not in (found, [found, found]):
      raise UserError(
        f"open_clip_config.json: {name} is {fields.shown(model[name])}, of the weights beside it"
        f" {found}"
      )
  activation = "quick_gelu" if fields.flag(model, "quick_gelu", False) else "gelu"
  text = text.clone(
    num_heads=fields.positive_int(model, "text_cfg.heads", 8), activation=activation
  )
  fields.divides("text_cfg.width", text.width, "text_cfg.heads", text.num_heads)
  head_width = fields.positive_int(model, "vision_cfg.head_width", 64)
  if resnet:
    fields.must_be(model, "vision_cfg.head_width", HEAD_DIM)
  else:
    fields.divides("vision_cfg.width", image.width, "vision_cfg.head_width", head_width)
    image = image.clone(num_heads=image.width // head_width, activation=activation)
  system = dataclasses.replace(system, image=image, text=text)
  return CheckpointMap(system, openai_rows(image, text.num_heads), ALIASES)


def _resnet_of(shapes) -> ModifiedResNet:
  stages = fields.count(shapes, r"visual\.layer(\d+)\.", most=fields.MAX_STAGES)
  stage_sizes = tuple(
    fields.count(shapes, rf"visual\.layer{i + 1}\.(\d+)\.") for i in range(stages)
  )
  stem_width = fields.shape(shapes, "visual.conv3.weight", 4)[0]
  grid = math.isqrt(fields.positions(shapes, "visual.attnpool.positional_embedding", 2) - 1)
  return ModifiedResNet(grid * 4 * 2 ** (stages - 1), stage_sizes, stem_width)


# Those of an `open_clip_config.json` that are OpenAI's architecture, or matter in training alone.
OPEN_CLIP_FIELDS = frozenset(
  (
    "embed_dim",
    "quick_gelu",
    "init_logit_scale",
    "text_cfg.context_length",
    "text_cfg.vocab_size",
    "text_cfg.width",
    "text_cfg.heads",
    "text_cfg.layers",
    "text_cfg.mlp_ratio",
    "vision_cfg.image_size",
    "vision_cfg.layers",
    "vision_cfg.width",
    "vision_cfg.head_width",
    "vision_cfg.patch_size",
    "vision_cfg.mlp_ratio",
    "vision_cfg.patch_dropout",
  )
)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


# `fill_color` is of another `resize_mode`.
_PREPROCESS_FIELDS = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}


def openai_preprocess(image_size: int, mean=MEAN, std=STD) -> str:
  """The ops on images of OpenAI's code and open_clip's: alpha is dropped last."""
  return (
    f"decode('any')|resize_small({image_size})|central_crop({image_size}, half='even')|opaque|"
    f"normalize({tuple(mean)}, {tuple(std)})"
  )


def open_clip_preprocess(system: CLIP, config: Mapping) -> str:
  """The preprocessing string of an `open_clip_config.json`."""
  section = fields.section(config, "preprocess_cfg")
  told = {name: value for name, value in section.items() if value is not None}
  if foreign := sorted(told.keys() - _PREPROCESS_FIELDS):
    raise UserError(
      f"open_clip_config.json: preprocess_cfg has {fields.shown(foreign)}, unknown to vlx"
    )
  for name, wanted in dict(interpolation="bicubic", resize_mode="shortest", mode="RGB").items():
    fields.must_be(told, name, wanted)
  size = system.image.image_size
  if told.get("size", size) not in (size, [size, size]):
    raise UserError(
      f"open_clip_config.json: size is {fields.shown(told['size'])}, and the model is for {size}"
    )
  # One number is of all channels.
  mean, std = (
    [x] * 3 if type(x := told.get(name, default)) in (int, float) else x
    for name, default in (("mean", MEAN), ("std", STD))
  )
  for name, value, kind in (("mean", mean, preprocessor.MEANS), ("std", std, preprocessor.STDS)):
    if not kind.holds(value):
      raise UserError(f"open_clip_config.json: {name} is {fields.shown(value)}; {kind.told}")
  return openai_preprocess(size, mean, std)


def preprocess(system: CLIP, config: Mapping | None = None) -> str:
  """The ops on images that a `preprocessor_config.json` asks for; OpenAI's without one."""
  size = system.image.image_size
  if config is None:
    return openai_preprocess(size)
  defaults = dict(
    image_mean=list(MEAN),
    image_std=list(STD),
    resample=3,
    do_center_crop=True,
    size={"shortest_edge": size},
    crop_size={"height": size, "width": size},
  )
  return preprocessor.image_ops(config, defaults)
