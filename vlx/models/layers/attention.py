"""Multi-head attention (Vaswani et al., 2017, "Attention Is All You Need", §3.2.2)."""

import flax.linen as nn
from jaxtyping import Array, Float

from vlx.models.layers.linear import flat_dot_general
from vlx.ops.attention import attention, attention_weights
from vlx.ops.masks import Full, Mask

Initializer = nn.initializers.Initializer


class MultiHeadAttention(nn.Module):
  """Attention of `inputs` to itself, or to `context` where one is given.

  Kernels are kept per head: query, key, value `[D, heads, head_dim]`, out `[heads, head_dim, D]`.
  For callers that make the collection `intermediates` mutable, the weights `[batch, heads, length,
  keys]` are sown there as `attention`.
  """

  num_heads: int
  head_dim: int = 0  # 0: width / num_heads
  qkv_bias: bool = True
  kernel_init: Initializer = nn.initializers.xavier_uniform()
  out_init: Initializer = nn.initializers.xavier_uniform()
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self,
    inputs: Float[Array, "batch length width"],
    mask: Mask = Full(),
    context: Float[Array, "batch keys context_width"] | None = None,
  ) -> Float[Array, "batch length width"]:
    width = inputs.shape[-1]
    if not self.head_dim and width % self.num_heads:
      raise ValueError(f"width {width} does not divide into {self.num_heads} heads")
    context = inputs if context is None else context

    def project(name, x):
      return nn.DenseGeneral(
        (self.num_heads, self.head_dim or width // self.num_heads),
        use_bias=self.qkv_bias,
        kernel_init=self.kernel_init,
        dtype=self.dtype,
        dot_general=flat_dot_general,
        name=name,
      )(x)

    queries, keys, values = (
      project("query", inputs),
      project("key", context),
      project("value", context),
    )
    if self.is_mutable_collection("intermediates"):
      self.sow("intermediates", "attention", attention_weights(queries, keys, mask=mask))
    return nn.DenseGeneral(
      width,
      axis=(-2, -1),
      kernel_init=self.out_init,
      dtype=self.dtype,
      dot_general=flat_dot_general,
      name="out",
    )(attention(queries, keys, values, mask=mask))
