"""Rows of the tables of names: single layers as torch stores them.

`ours` is the path of a layer, below "params" and "state/batch_stats".
"""

from vlx.pretrained.tables import Pattern, Row


def convolution(public: str, ours: str, *, bias: bool = False) -> list[Row]:
  rows = [Row(f"{public}.weight", f"params/{ours}/kernel", ("o i h w -> h w i o", {}))]
  return rows + [Row(f"{public}.bias", f"params/{ours}/bias")] * bias


def dense(public: str, ours: str, pattern: Pattern = ("o i -> i o", {})) -> list[Row]:
  return [
    Row(f"{public}.weight", f"params/{ours}/kernel", pattern),
    Row(f"{public}.bias", f"params/{ours}/bias"),
  ]


def batch_norm(public: str, ours: str) -> list[Row]:
  return [
    Row(f"{public}.weight", f"params/{ours}/scale"),
    Row(f"{public}.bias", f"params/{ours}/bias"),
    Row(f"{public}.running_mean", f"state/batch_stats/{ours}/mean"),
    Row(f"{public}.running_var", f"state/batch_stats/{ours}/var"),
    Row(f"{public}.num_batches_tracked", None),  # counts what torch's momentum does not use
  ]


def layer_norm(public: str, ours: str) -> list[Row]:
  return [
    Row(f"{public}.weight", f"params/{ours}/scale"),
    Row(f"{public}.bias", f"params/{ours}/bias"),
  ]


def transformer_block(
  public: str,
  ours: str,
  num_heads: int,
  *,
  norms: tuple[str, str],
  attention: tuple[str, ...],
  out: str,
  mlp: tuple[str, str],
  qkv_bias: bool = True,
) -> list[Row]:
  """Rows for a `vlx.models.layers.transformer.Block`.

  Args:
    public: what stands before the public names.
    ours: the path of the block, below "params".
    num_heads: of the attention.
    norms: public names of the norms of attention and MLP.
    attention: public names of queries, keys and values up to "weight", or one, of a tensor of all
      three.
    out: public name of the attention's output.
    mlp: public names of the two dense layers.
    qkv_bias: whether queries, keys and values have biases.
  """
  heads, rows = {"h": num_heads}, []
  qkv = [f"params/{ours}/attention/{name}" for name in ("query", "key", "value")]
  if len(attention) == 1:
    start, fused = f"{public}.{attention[0]}", {"n": 3, **heads}
    rows += [
      Row(f"{start}weight", tuple(f"{x}/kernel" for x in qkv), ("(n h e) d -> n d h e", fused)),
      Row(f"{start}bias", tuple(f"{x}/bias" for x in qkv), ("(n h e) -> n h e", fused)),
    ]
  else:
    for theirs, name in zip(attention, qkv, strict=True):
      rows.append(Row(f"{public}.{theirs}weight", f"{name}/kernel", ("(h e) d -> d h e", heads)))
      if qkv_bias:
        rows.append(Row(f"{public}.{theirs}bias", f"{name}/bias", ("(h e) -> h e", heads)))
  rows += dense(f"{public}.{out}", f"{ours}/attention/out", ("d (h e) -> h e d", heads))
  for theirs, name in zip((*norms, *mlp), ("attention_norm", "mlp_norm", "mlp/fc1", "mlp/fc2")):
    rows += (layer_norm if "norm" in name else dense)(f"{public}.{theirs}", f"{ours}/{name}")
  return rows
