"""vlx: the systems from Show and Tell to LLaVA in one JAX codebase. `vlx.load(source)` gives a
`vlx.model.Model`.
"""


def __getattr__(name: str):
  if name in ("load", "Model"):  # here, for JAX takes a second to import
    from vlx import model

    return getattr(model, name)
  raise AttributeError(f"module 'vlx' has no attribute {name!r}")
