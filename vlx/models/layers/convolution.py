"""What several convolutional systems share."""

from jaxtyping import Array, Float


def double(
  x: Float[Array, "batch height width channels"],
) -> Float[Array, "batch rows columns channels"]:
  """Each pixel as 2x2."""
  return x.repeat(2, axis=1).repeat(2, axis=2)
