"""Names of UNets' and their autoencoders' public files: diffusers', and those of the authors' code, guided-diffusion
and CompVis' latent diffusion.
"""

import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

from vlx.models.generation.autoencoder import KLAutoencoder, VQAutoencoder
from vlx.models.layers.unet import UNet
from vlx.pretrained.tables import Pattern, Row
from vlx.pretrained.torch_rows import convolution, dense, layer_norm

ONE_BY_ONE = ("o i 1 1 -> i o", {})  # a 1x1 convolution as a dense layer
_DENSE = ("o i -> i o", {})

# Files of diffusers before version 0.18 have attention under these names.
DIFFUSERS_ALIASES = tuple(
  (rf"(attentions\.\d+)\.{old}\.", rf"\1.{new}.")
  for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
)


class _Block(NamedTuple):
  """Public names in a residual block."""

  norm1: str
  conv1: str
  embedding: str
  norm2: str
  conv2: str
  shortcut: str


_DIFFUSERS = _Block("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut")
_ORIGINAL = _Block(
  "in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection"
)
_DIFFUSERS_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_COMPVIS = _DIFFUSERS._replace(shortcut="nin_shortcut")  # of its autoencoders


class _Module(NamedTuple):
  """A part of the network."""

  ours: str
  kind: str  # block, attention, or resample
  widths: tuple[int, int]  # before and after it
  diffusers: str
  original: str


def _modules(unet: UNet) -> Iterator[_Module]:
  """Those of a UNet between its first and its last layer, in order."""
  last, widths = len(unet.multipliers) - 1, [unet.width * m for m in unet.multipliers]
  kept, at, before = [unet.width], 1, unet.width
  for i, width in enumerate(widths):
    for j in range(unet.num_blocks):
      yield _Module(
        f"down{i}_block{j}",
        "block",
        (before, width),
        f"down_blocks.{i}.resnets.{j}",
        f"input_blocks.{at}.0",
      )
      if 2**i in unet.attention_at:
        yield _Module(
          f"down{i}_attention{j}",
          "attention",
          (width, width),
          f"down_blocks.{i}.attentions.{j}",
          f"input_blocks.{at}.1",
        )
      kept.append(width)
      before, at = width, at + 1
    if i != last:
      yield _Module(
        f"down{i}_resample",
        "resample",
        (width, width),
        f"down_blocks.{i}.downsamplers.0",
        f"input_blocks.{at}.0",
      )
      kept.append(width)
      at += 1
  middle = (("block0", "resnets.0"), ("attention", "attentions.0"), ("block1", "resnets.1"))
  for index, (name, theirs) in enumerate(middle):
    kind = name.rstrip("01")
    if kind == "attention" and not unet.middle_attention:
      continue
    yield _Module(
      f"middle_{name}", kind, (before, before), f"mid_block.{theirs}", f"middle_block.{index}"
    )
  at = 0
  for i, width in reversed(list(enumerate(widths))):
    for j in range(unet.num_blocks + 1):
      there = f"up_blocks.{last - i}"
      yield _Module(
        f"up{i}_block{j}",
        "block",
        (before + kept.pop(), width),
        f"{there}.resnets.{j}",
        f"output_blocks.{at}.0",
      )
      if attends := 2**i in unet.attention_at:
        yield _Module(
          f"up{i}_attention{j}",
          "attention",
          (width, width),
          f"{there}.attentions.{j}",
          f"output_blocks.{at}.1",
        )
      if i and j == unet.num_blocks:
        yield _Module(
          f"up{i}_resample",
          "resample",
          (width, width),
          f"{there}.upsamplers.0",
          f"output_blocks.{at}.{1 + attends}",
        )
      before, at = width, at + 1


class _Names(NamedTuple):
  """Of a UNet's public files."""

  ends: tuple[str, str, str, str, str]  # first layer, the time's two, last norm, last layer
  label: str
  block: _Block
  module: Callable[[_Module], str]
  down: str  # the convolution in what halves the size; "conv" doubles it
  attention: Callable[[str, str, int], list[Row]]  # rows of (public, ours, heads)


def diffusers_rows(
  unet: UNet, *, linear: bool = False, ours: str = "", public: str = ""
) -> list[Row]:
  """Of `UNet2DModel` and `UNet2DConditionModel`.

  Args:
    unet: the network.
    linear: whether transformers have dense layers at both ends, as in Stable Diffusion 2, or 1x1 convolutions.
    ours: before our paths, below "params".
    public: before the public names.
  """
  names = _Names(
    ("conv_in", "time_embedding.linear_1", "time_embedding.linear_2", "conv_norm_out", "conv_out"),
    "class_embedding",
    _DIFFUSERS,
    lambda module: module.diffusers,
    "conv",
    functools.partial(_attention, norm="group_norm", names=_DIFFUSERS_ATTENTION),
  )
  return list(_rows(unet, names, linear, ours, public))


def original_rows(
  unet: UNet, *, legacy: bool = True, linear: bool = False, ours: str = "", public: str = ""
) -> list[Row]:
  """Of the authors' code.

  Args:
    unet: the network.
    legacy: whether q, k and v stand head by head in the rows of ADM's attention; else all of q come first.
    linear: see `diffusers_rows`, as the rest.
    ours: see there.
    public: see there.
  """
  names = _Names(
    ("input_blocks.0.0", "time_embed.0", "time_embed.2", "out.0", "out.2"),
    "label_emb",
    _ORIGINAL,
    lambda module: module.original,
    "op",
    functools.partial(_fused_attention, legacy=legacy),
  )
  return list(_rows(unet, names, linear, ours, public))


def _rows(unet: UNet, names: _Names, linear: bool, ours: str, public: str) -> Iterator[Row]:
  theirs = [f"{public}{name}" for name in names.ends]
  yield from convolution(theirs[0], f"{ours}in", bias=True)
  yield from dense(theirs[1], f"{ours}time1")
  yield from dense(theirs[2], f"{ours}time2")
  yield from layer_norm(theirs[3], f"{ours}out_norm")
  yield from convolution(theirs[4], f"{ours}out", bias=True)
  if unet.num_classes:
    yield Row(f"{public}{names.label}.weight", f"params/{ours}label/embedding")
  for module in _modules(unet):
    there, here, width = f"{public}{names.module(module)}", f"{ours}{module.ours}", module.widths[0]
    if module.kind == "block" or (module.kind == "resample" and unet.residual_resampling):
      yield from _block(there, here, names.block, module.widths, embedded=True)
    elif module.kind == "resample":
      name = names.down if here.startswith(f"{ours}down") else "conv"
      yield from convolution(f"{there}.{name}", f"{here}/conv", bias=True)
    elif unet.transformer_depth:
      yield from _transformer(there, here, unet, width, linear)
    elif unet.joint_attention:
      yield from _joint_attention(there, here, _heads(unet, width))
    else:
      yield from names.attention(there, here, _heads(unet, width))


def _heads(unet: UNet, width: int) -> int:
  return width // unet.head_dim if unet.head_dim else unet.num_heads


def _block(
  public: str, ours: str, names: _Block, widths: tuple[int, int], *, embedded: bool
) -> list[Row]:
  rows = [
    *layer_norm(f"{public}.{names.norm1}", f"{ours}/norm1"),
    *convolution(f"{public}.{names.conv1}", f"{ours}/conv1", bias=True),
    *layer_norm(f"{public}.{names.norm2}", f"{ours}/norm2"),
    *convolution(f"{public}.{names.conv2}", f"{ours}/conv2", bias=True),
  ]
  if embedded:
    rows += dense(f"{public}.{names.embedding}", f"{ours}/embedding")
  if widths[0] != widths[1]:
    rows += dense(f"{public}.{names.shortcut}", f"{ours}/shortcut", ONE_BY_ONE)
  return rows


def _attention(
  public: str,
  ours: str,
  heads: int,
  *,
  norm: str,
  names: tuple[str, str, str, str],
  square: str = "",
) -> list[Row]:
  """Of four layers with biases; `square` is " 1 1" where they are convolutions."""
  sizes = {"h": heads}
  rows = layer_norm(f"{public}.{norm}", f"{ours}/norm")
  for theirs, name in zip(names[:3], ("query", "key", "value")):
    mine = f"params/{ours}/attention/{name}"
    rows += [
      Row(f"{public}.{theirs}.weight", f"{mine}/kernel", (f"(h e) d{square} -> d h e", sizes)),
      Row(f"{public}.{theirs}.bias", f"{mine}/bias", ("(h e) -> h e", sizes)),
    ]
  return rows + dense(
    f"{public}.{names[3]}", f"{ours}/attention/out", (f"d (h e){square} -> h e d", sizes)
  )


def _joint_attention(public: str, ours: str, heads: int) -> list[Row]:
  """Of diffusers."""
  sizes, rows = {"h": heads}, layer_norm(f"{public}.group_norm", f"{ours}/norm")
  for theirs, name in (
    ("to_q", "query"),
    ("to_k", "key"),
    ("to_v", "value"),
    ("add_k_proj", "context_key"),
    ("add_v_proj", "context_value"),
  ):
    rows += [
      Row(f"{public}.{theirs}.weight", f"params/{ours}/{name}/kernel", ("(h e) d -> d h e", sizes)),
      Row(f"{public}.{theirs}.bias", f"params/{ours}/{name}/bias", ("(h e) -> h e", sizes)),
    ]
  return rows + dense(f"{public}.to_out.0", f"{ours}/out", ("d (h e) -> h e d", sizes))


def _fused_attention(public: str, ours: str, heads: int, *, legacy: bool) -> list[Row]:
  """Of one 1x1 convolution, over positions in a row."""
  sizes, order = {"h": heads, "n": 3}, "h n e" if legacy else "n h e"
  qkv = [f"params/{ours}/attention/{name}" for name in ("query", "key", "value")]
  weight: Pattern = (f"({order}) d 1 -> n d h e", sizes)
  return [
    *layer_norm(f"{public}.norm", f"{ours}/norm"),
    Row(f"{public}.qkv.weight", tuple(f"{x}/kernel" for x in qkv), weight),
    Row(f"{public}.qkv.bias", tuple(f"{x}/bias" for x in qkv), (f"({order}) -> n h e", sizes)),
    *dense(f"{public}.proj_out", f"{ours}/attention/out", ("d (h e) 1 -> h e d", {"h": heads})),
  ]


def _transformer(public: str, ours: str, unet: UNet, width: int, linear: bool) -> list[Row]:
  ends = _DENSE if linear else ONE_BY_ONE
  sizes = {"h": _heads(unet, width)}
  rows = [
    *layer_norm(f"{public}.norm", f"{ours}/norm"),
    *dense(f"{public}.proj_in", f"{ours}/in", ends),
    *dense(f"{public}.proj_out", f"{ours}/out", ends),
  ]
  for i in range(unet.transformer_depth):
    theirs, mine = f"{public}.transformer_blocks.{i}", f"{ours}/block{i}"
    for k, name in ((1, "self"), (2, "cross")):
      for x, projection in (("q", "query"), ("k", "key"), ("v", "value")):
        path = f"params/{mine}/{name}_attention/{projection}/kernel"
        rows.append(Row(f"{theirs}.attn{k}.to_{x}.weight", path, ("(h e) d -> d h e", sizes)))
      rows += dense(
        f"{theirs}.attn{k}.to_out.0", f"{mine}/{name}_attention/out", ("d (h e) -> h e d", sizes)
      )
    for k, name in ((1, "self_norm"), (2, "cross_norm"), (3, "mlp_norm")):
      rows += layer_norm(f"{theirs}.norm{k}", f"{mine}/{name}")
    rows += dense(f"{theirs}.ff.net.0.proj", f"{mine}/mlp/fc1") + dense(
      f"{theirs}.ff.net.2", f"{mine}/mlp/fc2"
    )
  return rows


Autoencoder = KLAutoencoder | VQAutoencoder


def autoencoder_rows(
  system: Autoencoder, *, diffusers: bool = True, ours: str = "", public: str = ""
) -> list[Row]:
  """Of `AutoencoderKL` and `VQModel`, or of CompVis' code; what its loss has besides is not read.

  Args:
    system: the autoencoder.
    diffusers: whether the names are diffusers'.
    ours: see `diffusers_rows`, as the rest.
    public: see there.
  """
  last = len(system.multipliers) - 1
  widths = [system.width * m for m in system.multipliers]
  names = _DIFFUSERS if diffusers else _COMPVIS
  attend = functools.partial(
    _attention,
    heads=1,
    norm="group_norm" if diffusers else "norm",
    names=_DIFFUSERS_ATTENTION if diffusers else ("q", "k", "v", "proj_out"),
    square="" if diffusers else " 1 1",
  )
  rows = []
  for half, count in (("encoder", system.num_blocks), ("decoder", system.num_blocks + 1)):
    theirs, mine = f"{public}{half}", f"{ours}{half}"
    rows += convolution(f"{theirs}.conv_in", f"{mine}/in", bias=True)
    out = f"{mine}/out" if half == "encoder" else f"{ours}out"
    rows += convolution(f"{theirs}.conv_out", out, bias=True)
    rows += layer_norm(
      f"{theirs}.{'conv_norm_out' if diffusers else 'norm_out'}", f"{mine}/out_norm"
    )

    for j in (0, 1):
      middle = f"mid_block.resnets.{j}" if diffusers else f"mid.block_{j + 1}"
      rows += _block(f"{theirs}.{middle}", f"{mine}/middle_block{j}", names, (1, 1), embedded=False)
    middle = "mid_block.attentions.0" if diffusers else "mid.attn_1"
    rows += attend(f"{theirs}.{middle}", f"{mine}/middle_attention")
    down = half == "encoder"
    before = widths[0] if down else widths[-1]
    for i in range(last + 1) if down else reversed(range(last + 1)):
      if diffusers:
        level = f"{theirs}.down_blocks.{i}" if down else f"{theirs}.up_blocks.{last - i}"
      else:
        level = f"{theirs}.{'down' if down else 'up'}.{i}"
      for j in range(count):
        there = f"{level}.resnets.{j}" if diffusers else f"{level}.block.{j}"
        rows += _block(
          there, f"{mine}/level{i}_block{j}", names, (before, widths[i]), embedded=False
        )
        before = widths[i]
        if 2**i in system.attention_at:
          there = f"{level}.attentions.{j}" if diffusers else f"{level}.attn.{j}"
          rows += attend(there, f"{mine}/level{i}_attention{j}")
      if i != (last if down else 0):
        kind = "down" if down else "up"
        there = f"{level}.{kind}samplers.0.conv" if diffusers else f"{level}.{kind}sample.conv"
        rows += convolution(there, f"{mine}/level{i}_resample/conv", bias=True)
  rows += dense(f"{public}quant_conv", f"{ours}to_latents", ONE_BY_ONE)
  rows += dense(f"{public}post_quant_conv", f"{ours}from_latents", ONE_BY_ONE)
  if system.num_codes:
    rows.append(Row(f"{public}quantize.embedding.weight", f"params/{ours}codebook"))
  return rows
