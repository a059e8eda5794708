"""One training step: a pure function of (state, batch)."""

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from ml_collections import ConfigDict

from vlx.core.system import Aux, Batch, System
from vlx.train import optimizer as optimizers
from vlx.train.state import TrainState


def _loss_and_gradients(system: System, optim: ConfigDict, variables, batch, rng, step):
  """((loss, aux), gradients) of one batch, or the means over `accumulate` equal parts of it.

  Parts are taken one after another, so memory is that of one part. A contrastive loss then sees
  the negatives of its part only.
  """

  def loss(params, state, batch, rng):
    params = optimizers.stop_frozen(optim, params)
    return system.loss({"params": params, "state": state}, batch, rng, step=step, train=True)

  gradient = jax.value_and_grad(loss, has_aux=True)
  params, state = variables["params"], variables["state"]
  parts = optim.accumulate
  if parts == 1:
    return gradient(params, state, batch, rng)

  def one(state, inputs):
    part, index = inputs
    (value, aux), grads = gradient(params, state, part, jax.random.fold_in(rng, index))
    return aux.state, (value, aux.metrics, grads)

  def total(carry, inputs):
    state, sums = carry
    state, out = one(state, inputs)
    return (state, jax.tree.map(jnp.add, sums, out)), None

  # "(b parts)": each part takes every parts-th row, so that rows stay on their devices.
  split = jax.tree.map(lambda x: rearrange(x, "(b p) ... -> p b ...", p=parts), batch)
  inputs = (split, jnp.arange(parts))
  shapes = jax.eval_shape(one, state, jax.tree.map(lambda x: x[0], inputs))[1]
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
  (state, sums), _ = jax.lax.scan(total, (state, zeros), inputs)
  value, metrics, grads = jax.tree.map(lambda x: x / parts, sums)
  return (value, Aux(metrics, state)), grads


def make(
    system: System, optimizer: optax.GradientTransformation, optim: ConfigDict, steps: int, seed: int
):
  """train_step(state, batch) → (state, metrics).

  The key of step s is fold_in(seed, s). A loss that is not finite, or gradients that are not, leave
  everything as it was and set `state.finite` to False, for good.
  """
  schedule = optimizers.schedule(optim, steps)

  def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
    rng = jax.random.fold_in(jax.random.key(seed), state.step)
    (loss, aux), grads = _loss_and_gradients(
        system, optim, state.variables, batch, rng, state.step
    )
    grad_norm = optax.tree.norm(grads)
    params = state.variables["params"]
    updates, optimizer_state = optimizer.update(grads, state.optimizer, params)
    params = optax.apply_updates(params, updates)
    average = state.average
    if average is not None:
      # The average follows closely while it is young: Polyak averaging with TensorFlow's warmup.
      decay = jnp.minimum(optim.ema_decay, (1 + state.step) / (10 + state.step))
      average = optax.incremental_update(params, average, 1 - decay)
    finite = state.finite & jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    new = TrainState(
        step=state.step + 1,
        variables={"params": params, "state": aux.state},
        optimizer=optimizer_state,
        average=average,
        finite=finite,
    )
    kept = jax.tree.map(lambda new, old: jnp.where(finite, new, old), new, state)
    metrics = {
        **aux.metrics, "loss": loss, "grad_norm": grad_norm, "lr": schedule(state.step),
        "finite": finite,
    }
    return kept.replace(finite=finite), metrics

  return train_step
