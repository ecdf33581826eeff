"""What a generator of codes is: a NamedTuple of pure functions.

It knows code tuples and the sizes K_1, ..., K_T of their levels, and nothing
of how they were made. Every level has embedding rows and an output of its own.
It reads vectors, not codes, so that codes may be soft: weights of a level's
rows, through which the loss reaches who made the codes. A loss:

    x = model.embed(params, codes[sequence.item])
    part = generator.split(model.layout, sequence, x, codes[sequence.item])
    read = model.read(params, part.x, part.sequence, key=key)
    logits = model.write(params, read, part.target, key=key).logits
    # Cross entropy of part.label by the logits, weighed by part.weight.
"""

import importlib
from types import ModuleType
from typing import Any, Callable, NamedTuple, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from sidrec import config as config_lib
from sidrec import types
from sidrec.config import ranges
from sidrec.models import attention
from sidrec.models import binding

NAMES = ('t5', 'decoder')  # Modules of this package.
# What all of them have.
RANGES: ranges.Table = {
    'dim': ranges.WIDTH, 'num_layers': ranges.DEPTH, 'num_heads': ranges.DEPTH,
    'head_dim': ranges.WIDTH, 'hidden': ranges.WIDTH,
    'dropout': attention.DROPOUT,
    'dtype': ranges.choice('float32', 'bfloat16')}

# [..., T] int32, or T arrays [..., K_l] float32 of weights.
Codes = types.Array | tuple[types.Array, ...]


class Read(NamedTuple):
  """What has been read.

  memory: what `write` needs beside it.
  pooled: [B, P, D] before each of the P places that learn, for losses that
    compare users with items.
  """
  memory: types.PyTree
  pooled: jax.Array


class Written(NamedTuple):
  """What P places write at T levels.

  logits: T arrays [B, P, K_l] float32.
  states: [B, P, T, D] that the logits are products of.
  """
  logits: tuple[jax.Array, ...]
  states: jax.Array


class Generator(NamedTuple):
  """Writes the codes of the next item.

  layout: 'packed': P = S places of a row learn, each from those before it in
    its segment; 'last': P = 1, the last place, which `read` is not shown.
  init: (key) -> params.
  embed: (params, Codes) -> [..., T, D] vectors, D the generator's own.
  read: (params, x [B, S, T, D], sequence, *, key=None) -> Read. key: of
    dropout, None = none; rows of it by `sequence.row`.
  write: (params, Read, x [B, P, T, D], *, key=None) -> Written: each level
    given x of the levels before it, as if the target's codes had been written.
  start: (params, x [B, S, T, D], sequence) -> (context, state): histories,
    newest last. The context is the user's, the state [B, 1, ...] the beams'.
  step: (params, context, prefix [B, W, l], state) -> (logits [B, W, K_{l+1}]
    float32, state): for l = 0, ..., T - 1 in turn, as `decode.beam_search`
    calls its model.
  heads: (params, Read) -> T arrays [B, P, K_l] of codes that do not wait for
    each other, or None.
  vector: (params, Read) -> [B, P, D'] of a dense head, or None.
  """
  layout: str
  init: Callable[..., types.PyTree]
  embed: Callable[..., jax.Array]
  read: Callable[..., Read]
  write: Callable[..., Written]
  start: Callable[..., tuple[types.PyTree, types.PyTree]]
  step: Callable[..., tuple[jax.Array, types.PyTree]]
  heads: Callable[..., tuple[jax.Array, ...]] | None = None
  vector: Callable[..., jax.Array] | None = None


class Split(NamedTuple):
  """A batch as a generator of a layout learns from it.

  sequence, x: what `read` sees, S' places.
  target: [B, P, T, D] vectors for `write`.
  label: [B, P, T] int32.
  weight: [B, P] float32, 1 = learns.
  """
  sequence: types.Sequence
  x: types.Array
  target: types.Array
  label: types.Array
  weight: types.Array


def modules() -> dict[str, ModuleType]:
  """Returns the modules of `NAMES`: each has `make`, `RANGES` and `LAYOUT`."""
  # Not imported above: they need this one.
  return {name: importlib.import_module(f'sidrec.models.{name}')
          for name in NAMES}


def make(config: Any, sizes: Sequence[int]) -> Generator:
  """Builds the generator of a name.

  Args:
    config: name, and what the `make` of that module reads.
    sizes: K_1, ..., K_T.

  Raises:
    types.InputError: unknown name, or settings out of range.
  """
  found = modules()
  config_lib.check_part(config, {'name': ranges.choice_of({
      name: {'generator': x.RANGES} for name, x in found.items()})},
                        'generator')
  return found[config.name].make(config, sizes)


def bind(layout: str, module: nn.Module, num_levels: int) -> Generator:
  """Makes the pure functions of a module with the methods of a Generator."""
  def example(own: nn.Module) -> Written:
    x = own.embed(jnp.zeros((1, 1, num_levels), jnp.int32))
    return own.write(own.read(x, binding.sequence(1)), x)
  return Generator(layout, **binding.bind(
      module, ['embed', 'read', 'write', 'start', 'step'], example))


def split(layout: str, sequence: types.Sequence, x: types.Array,
          codes: types.Array) -> Split:
  """Parts what is read from what is written.

  Args:
    layout: of the generator, and of the batch.
    sequence: [B, S].
    x: [B, S, T, D] vectors of all places.
    codes: [B, S, T] int32 of all places.
  """
  chex.assert_rank([x, codes], [4, 3])
  if layout == 'packed':
    return Split(sequence, x, x, codes, sequence.target)
  before = jax.tree.map(
      lambda y: y if y.ndim == 1 else y[:, :-1], sequence)
  return Split(before, x[:, :-1], x[:, -1:], codes[:, -1:],
               sequence.target[:, -1:])


def offsets(sizes: Sequence[int]) -> np.ndarray:
  """Returns the first embedding row of each level, [T]."""
  return np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)


def embed(table: types.Array, sizes: Sequence[int], codes: Codes,
          first: int = 0) -> jax.Array:
  """Makes vectors of n codes, of levels first, ..., first + n - 1.

  Args:
    table: [sum K, D].
    sizes: K_1, ..., K_T.
    codes: [..., n] int32, or n arrays [..., K_l] of weights.
    first: 0-based level of the first of them.

  Returns:
    [..., n, D].
  """
  if isinstance(codes, tuple):
    return jnp.stack([
        attention.project(weight, rows_of(table, sizes, first + level))
        for level, weight in enumerate(codes)], -2)
  start = offsets(sizes)[first:first + codes.shape[-1]]
  return table[codes + start.reshape((1,) * (codes.ndim - 1) + (-1,))]


def head(table: types.Array, sizes: Sequence[int], x: types.Array, level: int
         ) -> jax.Array:
  """Returns logits [..., K_l] float32 of outputs x [..., D] at a level.

  Args:
    table: [sum K, D].
    sizes: K_1, ..., K_T.
    x: outputs.
    level: 0-based.
  """
  return attention.project(x, rows_of(table, sizes, level).T).astype(
      jnp.float32)


def rows_of(table: types.Array, sizes: Sequence[int], level: int
            ) -> types.Array:
  """Returns the rows [K_l, D] of a 0-based level."""
  start = int(offsets(sizes)[level])
  return table[start:start + sizes[level]]
