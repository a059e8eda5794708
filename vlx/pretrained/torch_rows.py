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
