"""From the config's `optim` section to an optax transformation.

`rules` say, by parameter name, how a parameter departs from the section: `{"weight_decay": 0.0}`,
`{"lr_scale": 0.1}`, or `None`, which freezes it: it gets no gradient, no optimizer state, no update.
"""

import jax
import optax
from ml_collections import ConfigDict

from vlx.core.config import nearest
from vlx.core.errors import UserError
from vlx.core import partition

RULE_FIELDS = ("lr_scale", "weight_decay")


def schedule(optim: ConfigDict, steps: int) -> optax.Schedule:
  """Linear warmup from 0 to `lr`, then the named decay to `final_lr_ratio` · lr at `steps`.

  "step" multiplies by `decay_factor` every `decay_every` steps instead.
  """
  decay_steps = max(steps - optim.warmup_steps, 1)
  decays = {
      "cosine": lambda: optax.cosine_decay_schedule(optim.lr, decay_steps, optim.final_lr_ratio),
      "linear": lambda: optax.linear_schedule(optim.lr, optim.final_lr_ratio * optim.lr, decay_steps),
      "constant": lambda: optax.constant_schedule(optim.lr),
      "step": lambda: optax.exponential_decay(
          optim.lr, optim.decay_every, optim.decay_factor, staircase=True
      ),
  }
  if optim.schedule not in decays:
    raise UserError(f"no optim.schedule {optim.schedule!r}: {nearest(optim.schedule, decays)}")
  warmup = optax.linear_schedule(0.0, optim.lr, optim.warmup_steps)
  return optax.join_schedules([warmup, decays[optim.schedule]()], [optim.warmup_steps])


def _rule(optim: ConfigDict, steps: int, changes) -> optax.GradientTransformation:
  """The update rule for the parameters of one rule."""
  if changes is None:
    return optax.set_to_zero()
  if unknown := sorted(set(changes) - set(RULE_FIELDS)):
    raise UserError(f"no optim.rules field {unknown[0]!r}: {nearest(unknown[0], RULE_FIELDS)}")
  scale = changes.get("lr_scale", 1.0)
  base = schedule(optim, steps)
  lr = lambda step: scale * base(step)
  weight_decay = changes.get("weight_decay", optim.weight_decay)
  optimizers = {
      "adamw": lambda: optax.adamw(lr, optim.b1, optim.b2, optim.eps, weight_decay=weight_decay),
      "sgd": lambda: optax.chain(
          optax.add_decayed_weights(weight_decay), optax.sgd(lr, momentum=optim.b1)
      ),
      # As in Graves, 2013, eq. 38-41: by the deviation of the gradients, with momentum.
      "rmsprop": lambda: optax.chain(
          optax.add_decayed_weights(weight_decay),
          optax.rmsprop(lr, optim.b2, optim.eps, centered=True, momentum=optim.b1),
      ),
  }
  if optim.name not in optimizers:
    raise UserError(f"no optim.name {optim.name!r}: {nearest(optim.name, optimizers)}")
  return optimizers[optim.name]()


def make(optim: ConfigDict, steps: int, params) -> optax.GradientTransformation:
  """The transformation for parameters of these names; gradients are clipped by their global norm."""
  labels = partition.match(optim.rules, params, "optim")
  rules = {i: _rule(optim, steps, changes) for i, (_, changes) in enumerate(optim.rules)}
  clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()
  return optax.chain(clip, optax.partition(rules, labels))


def stop_frozen(optim: ConfigDict, params):
  """`params` with no gradient flowing to those that a rule freezes, so none is ever computed."""
  labels = partition.match(optim.rules, params, "optim")
  return jax.tree.map(
      lambda p, i: jax.lax.stop_gradient(p) if optim.rules[i][1] is None else p, params, labels
  )
