"""Transformer stacks, scanned over depth.

The pre-norm block is that of ViT (Dosovitskiy et al., 2021, eq. 2-3) and CLIP (Radford et al., 2021):
x ← x + MHA(LN x); x ← x + MLP(LN x). The post-norm block is that of Vaswani et al., 2017, §3.1, and BERT:
x ← LN(x + MHA(x)); x ← LN(x + MLP(x)). All layers live in one set of arrays with a leading `depth`
axis, so a deep stack compiles as fast as a shallow one.
"""

import functools

import flax.linen as nn
import jax
from jaxtyping import Array, Float

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


class MlpBlock(nn.Module):
  """Dense → activation → Dense."""

  mlp_dim: int
  activation: str = "gelu_tanh"
  dropout: float = 0.0
  kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  out_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
  bias_init: nn.initializers.Initializer = nn.initializers.normal(1e-6)
  dtype: str = "float32"

  @nn.compact
  def __call__(
      self, x: Float[Array, "batch length width"], *, train: bool = False
  ) -> Float[Array, "batch length width"]:
    width = x.shape[-1]
    dense = functools.partial(
        nn.Dense, bias_init=self.bias_init, dtype=self.dtype, dot_general=flat_dot_general
    )
    x = dense(self.mlp_dim, kernel_init=self.kernel_init, name="fc1")(x)
    x = ACTIVATIONS[self.activation](x)
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return dense(width, kernel_init=self.out_init, name="fc2")(x)


class Block(nn.Module):
  """One layer; the signature is what `nn.scan` wants: (carry, mask) → (carry, None).

  For callers that make the collection `intermediates` mutable, its output is sown there as `hidden`.
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

  @nn.compact
  def __call__(self, x, mask):
    width = x.shape[-1]
    if self.initialization == "clip":  # openai/CLIP model.py, initialize_parameters
      normal = nn.initializers.normal
      residual = normal(width**-0.5 * (2 * self.depth) ** -0.5)
      attention_init = dict(kernel_init=normal(width**-0.5), out_init=residual)
      mlp_init = dict(
          kernel_init=normal((2 * width) ** -0.5), out_init=residual,
          bias_init=nn.initializers.zeros,
      )
    elif self.initialization == "xavier":  # google-research/vision_transformer models_vit.py
      attention_init, mlp_init = {}, {}
    elif self.initialization == "bert":  # google-research/bert modeling.py, create_initializer
      normal = nn.initializers.truncated_normal(0.02)
      attention_init = dict(kernel_init=normal, out_init=normal)
      mlp_init = dict(kernel_init=normal, out_init=normal, bias_init=nn.initializers.zeros)
    else:
      raise ValueError(f"initialization is 'xavier', 'clip' or 'bert', not {self.initialization!r}")
    if self.norm not in ("pre", "post"):
      raise ValueError(f"norm is 'pre' or 'post', not {self.norm!r}")
    before, after = (self.norm == when for when in ("pre", "post"))
    dropout = nn.Dropout(self.dropout, deterministic=not self.train)
    attention_norm, mlp_norm = (
        nn.LayerNorm(self.layer_norm_epsilon, dtype=self.dtype, name=name)
        for name in ("attention_norm", "mlp_norm")
    )
    x = split_batch(x)
    y = attention_norm(x) if before else x
    y = MultiHeadAttention(
        self.num_heads, **attention_init, dtype=self.dtype, name="attention"
    )(y, mask)
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

  @nn.compact
  def __call__(
      self,
      x: Float[Array, "batch length width"],
      mask: Mask = Full(),
      *,
      train: bool = False,
  ) -> Float[Array, "batch length width"]:
    if not self.depth:
      return x
    # prevent_cse is for remat outside of a loop; inside one it only costs speed.
    block = nn.remat(Block, prevent_cse=False) if self.remat else Block
    stack = nn.scan(
        block,
        variable_axes={"params": 0, "intermediates": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=self.depth,
        unroll=self.unroll,
    )
    x, _ = stack(
        self.num_heads, self.mlp_dim, self.depth, self.activation, self.dropout,
        self.layer_norm_epsilon, self.initialization, self.dtype, train, self.norm, name="blocks",
    )(x, mask)
    return x
