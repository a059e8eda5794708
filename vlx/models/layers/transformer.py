"""Transformer stacks, scanned over depth.

The pre-norm block is that of ViT (Dosovitskiy et al., 2021, eq. 2-3) and CLIP (Radford et al.,
2021): x ← x + MHA(LN x); x ← x + MLP(LN x). The post-norm block is that of Vaswani et al., 2017,
§3.1, and BERT: x ← LN(x + MHA(x)); x ← LN(x + MLP(x)). All layers live in one set of arrays with a
leading `depth` axis, so a deep stack compiles as fast as a shallow one.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vlx.models.layers.attention import MultiHeadAttention
from vlx.models.layers.linear import flat_dot_general
from vlx.ops.axes import split_batch
from vlx.ops.masks import Full, Mask

# Three functions go by the name GELU: the exact one, its tanh approximation (Hendrycks & Gimpel,
# 2016, §2; what Flax and ViT's code call "gelu"), and x·σ(1.702x), OpenAI CLIP's QuickGELU.
ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


# torch.nn.Linear and Conv2d: within ±1/√fan_in.
torch_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def _within(bound: float) -> nn.initializers.Initializer:
  return lambda rng, shape, dtype=jnp.float32: jax.random.uniform(rng, shape, dtype, -bound, bound)


class MlpBlock(nn.Module):
  """Dense → activation → Dense."""

  mlp_dim: int
  activation: str = "gelu_tanh"
  dropout: float = 0.0
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  bias_init: nn.initializers.Initializer = nn.initializers.normal(1e-6)
  out_bias_init: nn.initializers.Initializer | None = None  # as `bias_init` where None
  dtype: str = "float32"

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch length width"], *, train: bool = False
  ) -> Float[Array, "batch length width"]:
    width = x.shape[-1]
    dense = functools.partial(nn.Dense, dtype=self.dtype, dot_general=flat_dot_general)
    x = dense(self.mlp_dim, kernel_init=self.kernel_init, bias_init=self.bias_init, name="fc1")(x)
    x = ACTIVATIONS[self.activation](x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    out_bias_init = self.out_bias_init or self.bias_init
    return dense(width, kernel_init=self.out_init, bias_init=out_bias_init, name="fc2")(x)


class Block(nn.Module):
  """One layer; the signature is what `nn.scan` wants: (carry, mask) → (carry, None).

  With `at`, one position a row, only that token goes through the layer; it attends to all of them.
  For callers that make the collection `intermediates` mutable, its output is sown there as
  `hidden`.
  """

  num_heads: int
  mlp_dim: int
  depth: int  # of the whole stack: CLIP's initialisation scales residual branches by it
  activation: str = "gelu_tanh"
  dropout: float = 0.0
  layer_norm_epsilon: float = 1e-6
  initialization: str = "xavier"
  dtype: str = "float32"
  train: bool = False
  norm: str = "pre"
  head_dim: int = 0  # 0: width / num_heads
  qkv_bias: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch length width"], mask: Mask, at: Int[Array, " batch"] | None = None
  ) -> tuple[Float[Array, "batch queries width"], None]:
    """(what the layer gives, None), for `nn.scan`; of the token at position `at` of each row alone
    where that is given.
    """
    width = x.shape[-1]
    if self.initialization == "clip":  # openai/CLIP model.py, initialize_parameters
      normal = nn.initializers.normal
      residual = normal(width**-0.5 * (2 * self.depth) ** -0.5)
      attention_init = dict(kernel_init=normal(width**-0.5), out_init=residual)
      mlp_init = dict(
        kernel_init=normal((2 * width) ** -0.5), out_init=residual, bias_init=nn.initializers.zeros
      )
    elif self.initialization == "xavier":  # google-research/vision_transformer models_vit.py
      attention_init, mlp_init = {}, {}
    elif self.initialization == "bert":  # google-research/bert modeling.py, create_initializer
      normal = nn.initializers.truncated_normal(0.02)
      attention_init = dict(kernel_init=normal, out_init=normal)
      mlp_init = dict(kernel_init=normal, out_init=normal, bias_init=nn.initializers.zeros)
    elif self.initialization == "torch":  # what its modules draw where a code says nothing
      attention_init = dict(
        kernel_init=nn.initializers.variance_scaling(0.5, "fan_in", "uniform"),  # q, k, v as one
        out_init=torch_kernel,
      )
      mlp_init = dict(
        kernel_init=torch_kernel,
        out_init=torch_kernel,
        bias_init=_within(width**-0.5),
        out_bias_init=_within(self.mlp_dim**-0.5),
      )
    else:
      raise ValueError(
        f"initialization is 'xavier', 'clip', 'bert' or 'torch', not {self.initialization!r}"
      )
    if self.norm not in ("pre", "post"):
      raise ValueError(f"norm is 'pre' or 'post', not {self.norm!r}")
    before, after = (self.norm == when for when in ("pre", "post"))
    dropout = nn.Dropout(self.dropout, deterministic=not self.train)
    attention_norm, mlp_norm = (
      nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name=name)
      for name in ("attention_norm", "mlp_norm")
    )
    x = split_batch(x)
    y = context = attention_norm(x) if before else x
    if at is not None:
      x, y = token(x, at), token(y, at)
    y = MultiHeadAttention(
      self.num_heads,
      self.head_dim,
      self.qkv_bias,
      **attention_init,
      dtype=self.dtype,
      name="attention",
    )(y, mask, context)
    x = x + dropout(y)
    x = attention_norm(x) if after else x
    y = mlp_norm(x) if before else x
    y = MlpBlock(
      self.mlp_dim, self.activation, self.dropout, **mlp_init, dtype=self.dtype, name="mlp"
    )(y, train=self.train)
    x = x + dropout(y)
    x = mlp_norm(x) if after else x
    self.sow("intermediates", "hidden", x)
    return x, None


def token(
  x: Float[Array, "batch length width"], at: Int[Array, " batch"]
) -> Float[Array, "batch 1 width"]:
  """The token of each row at its position."""
  return jnp.take_along_axis(x, at[:, None, None], axis=1)


class Transformer(nn.Module):
  """`depth` blocks, none for 0. Parameters stand under `blocks/…` with a leading depth axis.

  `unroll` layers are one turn of the loop: more compile longer and, on CPU, run faster.
  """

  depth: int
  num_heads: int
  mlp_dim: int
  activation: str = "gelu_tanh"
  dropout: float = 0.0
  layer_norm_epsilon: float = 1e-6
  initialization: str = "xavier"
  remat: bool = False
  unroll: int = 1
  dtype: str = "float32"
  norm: str = "pre"  # or "post"
  head_dim: int = 0  # 0: width / num_heads
  qkv_bias: bool = True

  @nn.compact
  def __call__(
    self, x: Float[Array, "batch length width"], mask: Mask = Full(), *, train: bool = False
  ) -> Float[Array, "batch length width"]:
    if not self.depth:
      return x
    x, _ = self._stack(self.depth)(**self._fields(train), name="blocks")(x, mask)
    return x

  @nn.compact
  def pooled(
    self,
    x: Float[Array, "batch length width"],
    at: Int[Array, " batch"],
    mask: Mask = Full(),
    at_mask: Mask = Full(),
    *,
    train: bool = False,
  ) -> tuple[Float[Array, "batch width"], Float[Array, "batch length width"]]:
    """The token at one position of each row, and all tokens: what `__call__` gives, in less work.

    Of the last layer only the keys and values of the other tokens reach the one that is asked for.
    A caller that has no use for all tokens saves the rest of that layer, five sixths of it, once
    jit prunes it.

    Args:
      x: as for `__call__`.
      at: positions.
      mask: as for `__call__`.
      at_mask: the same for one query a row, which stands at `at`.
      train: with dropout.
    """
    if not self.depth or self.is_initializing() or self.is_mutable_collection("intermediates"):
      x = self(x, mask, train=train)
      return token(x, at)[:, 0], x
    if self.depth > 1:
      lower = nn.map_variables(
        self._stack(self.depth - 1), "params", lambda p: jax.tree.map(lambda w: w[:-1], p)
      )
      x, _ = lower(**self._fields(train), name="blocks")(x, mask)
    last = jax.tree.map(lambda w: w[-1], self.variables["params"]["blocks"])
    rngs = {"dropout": self.make_rng("dropout")} if train and self.dropout else {}
    layer = lambda *inputs: self._block(**self._fields(train), parent=None).apply(
      {"params": last}, *inputs, rngs=rngs
    )[0]
    return layer(x, at_mask, at)[:, 0], layer(x, mask)

  @property
  def _block(self) -> type[nn.Module]:
    # prevent_cse is for remat outside of a loop; inside one it only costs speed.
    return nn.remat(Block, prevent_cse=False) if self.remat else Block

  def _stack(self, depth: int) -> type[nn.Module]:
    return nn.scan(
      self._block,
      variable_axes={"params": 0, "intermediates": 0},
      split_rngs={"params": True, "dropout": True},
      in_axes=nn.broadcast,
      length=depth,
      unroll=self.unroll,
    )

  def _fields(self, train: bool) -> dict:
    """The fields of a block, all of which the stack has too."""
    names = (
      "num_heads",
      "mlp_dim",
      "depth",
      "activation",
      "dropout",
      "layer_norm_epsilon",
      "initialization",
      "dtype",
      "norm",
      "head_dim",
      "qkv_bias",
    )
    return {name: getattr(self, name) for name in names} | {"train": train}
