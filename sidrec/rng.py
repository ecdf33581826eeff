"""Derives every random key from the seed, a name and a step.

Keys are never threaded nor saved: root -> crc32 of the stream's name -> step
-> index. A resumed run therefore draws what the unbroken one would have, and
streams without an index agree on all devices.
"""

import zlib

import jax

from sidrec import types

Seed = int | jax.Array


def stream(seed_or_key: Seed, name: str, step: Seed | None = None,
           index: Seed | None = None) -> jax.Array:
  """Derive the key of a named stream.

  Consumes nothing: the same arguments give the same key, in any process, on
  any device, inside and outside of jit.

  Args:
    seed_or_key: whole number, or a typed key [] (`jax.random.key`).
    name: of the stream, such as 'init' or 'dropout'.
    step: [] int32, or None for a stream that does not change with time.
    index: [] int32, for instance `jax.lax.axis_index`; None where replicas
      must agree (codebooks).

  Returns:
    A typed key [].
  """
  key = seed_or_key if _is_key(seed_or_key) else jax.random.key(seed_or_key)
  # Not `hash`: Python salts it, so processes and restarts would disagree.
  key = jax.random.fold_in(key, zlib.crc32(name.encode('utf-8')))
  # Each absent part folds nothing, so depth tells (name, 3) from (name,
  # step=None, index=3) only if the index never stands alone.
  if step is None and index is not None:
    key = jax.random.fold_in(key, zlib.crc32(b'index without step'))
  if step is not None:
    key = jax.random.fold_in(key, step)
  if index is not None:
    key = jax.random.fold_in(key, index)
  return key


def per_row(key: jax.Array, row: types.Array) -> jax.Array:
  """Derive one key a row, so that noise ignores how rows lie on devices.

  Args:
    key: [] typed key; consumed.
    row: [B] int32 index of the row in the *global* batch (`Batch.row`).

  Returns:
    [B] typed keys, for `jax.vmap`ped draws.
  """
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, row)


def _is_key(value):
  return isinstance(value, jax.Array) and jax.dtypes.issubdtype(
      value.dtype, jax.dtypes.prng_key)
