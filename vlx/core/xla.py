"""How XLA compiles for a CPU.

It hands products and convolutions to YNNPACK. By Eigen a convolution's gradient to its kernel takes 2.2 to 5.5 times
less, the rest 1.0 to 2.4 times (two cores of AMD EPYC, benchmarks/convolution.py). In training products have many rows,
and are Eigen's too; in decoding they have few, and stay with YNNPACK.
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
