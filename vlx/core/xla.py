"""How XLA compiles for a CPU.

It hands products and convolutions to YNNPACK. Eigen takes a fifth to two thirds of its time for a convolution's gradient
to the kernel, and on two idle cores half of it forward (benchmarks/convolution.py); products of many rows, as training
has them, are its too. Products of few rows, as decoding has them, are YNNPACK's.
"""

import functools

import jax

FUSIONS = "xla_cpu_experimental_ynn_fusion_type"
TRAINING = ""  # nothing goes to YNNPACK
INFERENCE = "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT"  # products alone do


def compiler_options(platform: str, fusions: str) -> dict[str, str] | None:
  """`jax.jit`'s, for a platform and one of the above; None where they mean nothing."""
  return {FUSIONS: fusions} if platform == "cpu" and _known(fusions) else None


@functools.cache
def _known(fusions: str) -> bool:
  """Whether this version of XLA has the option."""
  try:
    jax.jit(lambda: 0, compiler_options={FUSIONS: fusions}).lower().compile()
  except jax.errors.JaxRuntimeError:
    return False
  return True
