"""Names of ViT's public files: Hugging Face's `ViTForImageClassification` and `ViTModel`, timm's
`vit_*` (DINO's and MAE's are named so too), vit_jax's npz.

One network, three dialects of its constants: Hugging Face (erf GELU, ε = 1e-12, cubic resampling of
positions), timm (erf GELU, ε = 1e-6), and the paper's own code (tanh GELU, ε = 1e-6, linear
resampling).
"""

import math
from collections.abc import Mapping

from vlx.models.vision.vit import VisionTransformer, ViT, ViTEncoder
from vlx.pretrained import fields, preprocessor
from vlx.pretrained.tables import CheckpointMap, Row, renamed
from vlx.pretrained.torch_rows import convolution, dense, layer_norm, transformer_block

_BLOCKS = "tower/transformer/blocks"

# The paper's files and those of "How to train your ViT?" (2022) count a block's modules together.
NPZ_ALIASES = (
  (r"^params/", ""),
  (r"^pos_embedding$", "Transformer/posembed_input/pos_embedding"),  # big_vision
  (r"MultiHeadDotProductAttention_1/", "MultiHeadDotProductAttention_0/"),
  (r"LayerNorm_2/", "LayerNorm_1/"),
  (r"MlpBlock_3/", "MlpBlock_0/"),
)

# Widths whose heads are not of 64: Table 1 (H), Zhai et al., 2022, Table 2 (g, G).
_NUM_HEADS = {1280: 16, 1408: 16, 1664: 16}


def num_heads(width: int) -> int:
  """The number of heads of a published vision transformer, where a file with fused heads does not say."""
  return _NUM_HEADS.get(width, width // 64)


def hugging_face_rows(num_heads: int) -> list[Row]:
  """Rows for `ViTForImageClassification`."""
  return [*encoder_rows(num_heads, "vit."), *dense("classifier", "head")]


def encoder_rows(num_heads: int, public: str = "", *, pooler: bool = False) -> list[Row]:
  """Rows for `ViTModel`; `public` stands before its names."""
  embeddings = f"{public}embeddings"
  return [
    Row(f"{embeddings}.cls_token", "params/tower/cls"),
    Row(f"{embeddings}.position_embeddings", "params/tower/position_embedding"),
    *convolution(f"{embeddings}.patch_embeddings.projection", "tower/patch_embedding", bias=True),
    *transformer_block(
      f"{public}encoder.layer.{{layer}}",
      _BLOCKS,
      num_heads,
      norms=("layernorm_before", "layernorm_after"),
      attention=tuple(f"attention.attention.{x}." for x in ("query", "key", "value")),
      out="attention.output.dense",
      mlp=("intermediate.dense", "output.dense"),
    ),
    *layer_norm(f"{public}layernorm", "tower/final_norm"),
    *(dense(f"{public}pooler.dense", "pre_logits") if pooler else ()),
  ]


def timm_rows(num_heads: int, *, head: bool = True) -> list[Row]:
  return [
    Row("cls_token", "params/tower/cls"),
    Row("pos_embed", "params/tower/position_embedding"),
    *convolution("patch_embed.proj", "tower/patch_embedding", bias=True),
    *transformer_block(
      "blocks.{layer}",
      _BLOCKS,
      num_heads,
      norms=("norm1", "norm2"),
      attention=("attn.qkv.",),
      out="attn.proj",
      mlp=("mlp.fc1", "mlp.fc2"),
    ),
    *layer_norm("norm", "tower/final_norm"),
    *(dense("head", "head") if head else ()),
  ]


def npz_rows(*, cls: bool = True, pre_logits: bool = False, scanned: bool = False) -> list[Row]:
  """Rows for vit_jax and big_vision, whose arrays lie as vlx's do; `scanned` ones hold all layers."""
  block = "Transformer/encoderblock" + ("" if scanned else "_{layer}")
  attention, mlp = f"{block}/MultiHeadDotProductAttention_0", f"{block}/MlpBlock_0"
  pairs = {
    "embedding": "tower/patch_embedding",
    f"{block}/LayerNorm_0": f"{_BLOCKS}/attention_norm",
    **{f"{attention}/{x}": f"{_BLOCKS}/attention/{x}" for x in ("query", "key", "value", "out")},
    f"{block}/LayerNorm_1": f"{_BLOCKS}/mlp_norm",
    f"{mlp}/Dense_0": f"{_BLOCKS}/mlp/fc1",
    f"{mlp}/Dense_1": f"{_BLOCKS}/mlp/fc2",
    "Transformer/encoder_norm": "tower/final_norm",
    **({"pre_logits": "pre_logits"} if pre_logits else {}),
    "head": "head",
  }
  rows = [Row("cls", "params/tower/cls")] if cls else []
  rows += [Row("Transformer/posembed_input/pos_embedding", "params/tower/position_embedding")]
  for public, ours in pairs.items():
    for part in ("scale" if "norm" in public.lower() else "kernel", "bias"):
      rows.append(Row(f"{public}/{part}", f"params/{ours}/{part}"))
  return rows


def from_hugging_face(
  config: Mapping, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> CheckpointMap:
  """Reads a `config.json` with the model type "vit".

  Args:
    config: what lies in it.
    shapes: of the tensors in the file beside it, whose names say whether there is a classifier, or
      else a pooler; with a classifier where None.
  """
  fields.must_be(config, "num_channels", 3)
  fields.must_be(config, "qkv_bias", True)
  width, heads = (
    fields.positive_int(config, "hidden_size"),
    fields.positive_int(config, "num_attention_heads"),
  )
  fields.divides("hidden_size", width, "num_attention_heads", heads)
  image_size, patch_size = fields.patches(config, "image_size", "patch_size")
  tower = VisionTransformer(
    image_size=image_size,
    patch_size=patch_size,
    width=width,
    depth=fields.layers(config, "num_hidden_layers"),
    num_heads=heads,
    mlp_dim=fields.positive_int(config, "intermediate_size"),
    resampling="cubic",
    activation=fields.one_of(config, "hidden_act", fields.ACTIVATIONS),
    layer_norm_epsilon=fields.epsilon(config, "layer_norm_eps"),
  )
  if shapes is not None and not any(name.startswith("classifier.") for name in shapes):
    fields.must_be(config, "pooler_act", "tanh")
    pooler = [n for n in shapes if n.removeprefix("vit.") == "pooler.dense.weight"]
    size = fields.shape(shapes, pooler[0], 2)[0] if pooler else 0
    return encoder_layout(ViTEncoder(tower, size))
  # A classifier of two is Hugging Face's default, which its files leave out.
  classes = len(fields.section(config, "id2label")) or fields.positive_int(config, "num_labels", 2)
  return CheckpointMap(ViT(tower, classes), hugging_face_rows(heads))


def encoder_layout(system: ViTEncoder) -> CheckpointMap:
  """The table of a `ViTModel`; files that were cut out of a classifier's kept its names."""
  table = encoder_rows(system.tower.num_heads, pooler=bool(system.representation_size))
  return CheckpointMap(system, table, ((r"^vit\.", ""),))


def to_hugging_face(system: ViT | ViTEncoder) -> tuple[dict, CheckpointMap]:
  """(config.json, CheckpointMap) of `ViTForImageClassification`, or of `ViTModel`: without a pooler
  it loads with `add_pooling_layer=False`.
  """
  tower, what = system.tower, "Hugging Face's ViT"
  fields.exportable(
    what, tower, pool="cls", stem=(), patch_bias=True, pre_norm=False, cls_position=True
  )
  headless = isinstance(system, ViTEncoder)
  if headless:
    pooler = system.representation_size
    own = dict(architectures=["ViTModel"], **({"pooler_output_size": pooler} if pooler else {}))
  else:
    fields.exportable(what, system, representation_size=0)
    labels = {i: f"LABEL_{i}" for i in range(system.num_classes)}
    own = dict(
      architectures=["ViTForImageClassification"],
      id2label={str(i): label for i, label in labels.items()},
      label2id={v: i for i, v in labels.items()},
    )
  config = dict(
    **own,
    model_type="vit",
    num_channels=3,
    qkv_bias=True,
    hidden_size=tower.width,
    num_hidden_layers=tower.depth,
    num_attention_heads=tower.num_heads,
    intermediate_size=tower.mlp_dim,
    image_size=tower.image_size,
    patch_size=tower.patch_size,
    hidden_act=fields.public_activation(tower.activation),
    layer_norm_eps=tower.layer_norm_epsilon,
  )
  if headless:
    return config, encoder_layout(system)
  return config, CheckpointMap(system, hugging_face_rows(tower.num_heads))


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> CheckpointMap | None:
  """The system of timm's `vit_*`, or of vit_jax's and big_vision's npz, by their names; None for what is
  neither.
  """
  if {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "norm.weight"} <= shapes.keys():
    return _timm(shapes)
  found = {renamed(name, NPZ_ALIASES): shape for name, shape in shapes.items()}
  if {"embedding/kernel", "Transformer/encoder_norm/scale", "head/kernel"} <= found.keys():
    return _npz(found)
  return None


def _timm(shapes) -> CheckpointMap:
  width, _, patch_size, _ = fields.shape(shapes, "patch_embed.proj.weight", 4)
  tower = VisionTransformer(
    image_size=math.isqrt(fields.positions(shapes, "pos_embed", 3) - 1) * patch_size,
    patch_size=patch_size,
    width=width,
    depth=fields.count(shapes, r"blocks\.(\d+)\."),
    num_heads=num_heads(width),
    mlp_dim=fields.shape(shapes, "blocks.0.mlp.fc1.weight", 2)[0],
    activation="gelu",
    layer_norm_epsilon=1e-6,
  )
  if not any(name.startswith("head.") for name in shapes):
    return CheckpointMap(ViTEncoder(tower), timm_rows(tower.num_heads, head=False))
  classes, _ = fields.shape(shapes, "head.weight", 2)
  return CheckpointMap(ViT(tower, classes), timm_rows(tower.num_heads))


def _npz(shapes) -> CheckpointMap:
  patch_size, _, _, width = fields.shape(shapes, "embedding/kernel", 4)
  positions = fields.positions(shapes, "Transformer/posembed_input/pos_embedding", 3)
  cls, grid = "cls" in shapes, math.isqrt(positions)  # of n² and of n² + 1 the root is n
  scanned = any(name.startswith("Transformer/encoderblock/") for name in shapes)
  block = "Transformer/encoderblock" + ("" if scanned else "_0")
  query = fields.shape(shapes, f"{block}/MultiHeadDotProductAttention_0/query/bias", 2 + scanned)
  fc1 = fields.shape(shapes, f"{block}/MlpBlock_0/Dense_0/bias", 1 + scanned)
  pre_logits = fields.shape(shapes, "pre_logits/bias", 1)[0] if "pre_logits/bias" in shapes else 0
  tower = VisionTransformer(
    image_size=grid * patch_size,
    patch_size=patch_size,
    width=width,
    depth=fields.checked_int("the number of layers", query[0], fields.MAX_LAYERS)
    if scanned
    else fields.count(shapes, r"Transformer/encoderblock_(\d+)/"),
    num_heads=query[-2],
    mlp_dim=fc1[-1],
    pool="cls" if cls else "mean",
    cls_position=positions != grid**2,
    activation="gelu_tanh",
    layer_norm_epsilon=1e-6,
  )
  rows = npz_rows(cls=cls, pre_logits=bool(pre_logits), scanned=scanned)
  classes = fields.shape(shapes, "head/kernel", 2)[1]
  return CheckpointMap(ViT(tower, classes, pre_logits), rows, NPZ_ALIASES)


# Hugging Face's ViTImageProcessor: the whole image, out of its proportions.
_PREPROCESSOR = dict(image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=2)


def preprocess(system: ViT, config: Mapping | None = None) -> str:
  """The ops on images that a `preprocessor_config.json` asks for; ViTImageProcessor's without
  one.
  """
  size = system.tower.image_size
  defaults = {**_PREPROCESSOR, "size": {"height": size, "width": size}}
  return preprocessor.image_ops(config or {}, defaults)
