"""Turns a linen module into pure functions of its parameters."""

from typing import Any, Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from sidrec import types


def bind(module: nn.Module, methods: Sequence[str],
         example: Callable[[nn.Module], Any]) -> dict[str, Callable[..., Any]]:
  """Makes pure functions of a module, for the fields of a NamedTuple.

  Args:
    module: one whose only variables are parameters.
    methods: names of its methods.
    example: calls what reaches every parameter once, on inputs of any size;
      `init` runs it, as linen makes parameters where they are first used.

  Returns:
    'init': (key) -> params, and each method: (params, *args, **kwargs).
  """
  def init(key: jax.Array) -> types.PyTree:
    return module.init(key, method=example)['params']

  def call(name: str) -> Callable[..., Any]:
    return lambda params, *args, **kwargs: module.apply(
        {'params': params}, *args, method=name, **kwargs)

  return {'init': init, **{name: call(name) for name in methods}}


def sequence(num: int) -> types.Sequence:
  """Returns one row of `num` places, all of one user and of item 0."""
  nothing, one = jnp.zeros((1, num), jnp.int32), jnp.ones((1, num))
  return types.Sequence(
      row=nothing[:, 0], user=nothing, item=nothing, action=nothing,
      time=nothing, segment=nothing + 1, label=one, target=one)
