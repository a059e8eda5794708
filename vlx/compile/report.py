"""The table that `vlx.compile` prints."""


def table(result: dict) -> str:
  """Lines "name  value", for people."""
  sizes, mesh = (
    result["bytes_per_device"],
    " x ".join(f"{k} {n}" for k, n in result["mesh"].items()),
  )
  rows = [
    ("topology", f"{result['topology']}, {result['devices']} devices ({mesh})"),
    ("fits", "yes" if result["fits"] else f"NO, by {_gib(result['excess_bytes'])} per device"),
    ("parameters", f"{result['parameters']:,}"),
    ("", ""),
    *((f"{name.replace('_', ' ')} per device", _gib(size)) for name, size in sizes.items()),
    ("", ""),
    (
      "model FLOPs per step",
      f"{result['model_flops_per_step']:.4g}, batch {result['batch_size']:,}",
    ),
  ]
  if result["seconds_at_peak"]:
    peak = result["peak_flops_per_device"] / 1e12
    rows.append(
      ("time at peak", f"{result['seconds_at_peak']:.4g} s (bf16, {peak:.0f} TFLOP/s a device)")
    )
  for kind, c in (result["collectives"] or {}).items():
    unknown = f", {c['in_unknown_loops']} in loops counted once" if c["in_unknown_loops"] else ""
    rows.append((kind, f"{c['count']} a step, {_gib(c['bytes'])}{unknown}"))
  for name, k in (result["kernels"] or {}).items():
    figures = (
      ""
      if "hot" not in k
      else (
        f", {k['total']} bundles, {k['hot']} hot, matrix units {k['matrix']:.0%}, {k['spills']} spills"
      )
    )
    rows.append((f"kernel {name}", f"{k['runs']} a step{figures}"))
  width = max(len(name) for name, _ in rows)
  return "\n".join(f"{name:{width}}  {value}".rstrip() for name, value in rows)


def _gib(size: int) -> str:
  return f"{size / 2**30:.3f} GiB" if size >= 2**20 else f"{size:,} bytes"
