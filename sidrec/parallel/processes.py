"""Host values from process to process, bit by bit and of any size.

JAX's collectives cut 64 bits to 32 and count in 32: so bytes travel, in blocks.
The structure of a tree goes ahead, pickled; arrays follow by themselves.
"""

import dataclasses
import pickle
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from sidrec import types

_BLOCK = 1 << 26  # Most bytes that one collective carries.


@dataclasses.dataclass(frozen=True)
class _Sent:
  """Stands for an array that travels by itself."""
  dtype: np.dtype
  shape: tuple[int, ...]


def pack(tree: Any) -> tuple[bytes, list[np.ndarray]]:
  """Returns (the pickled structure, the arrays) of a tree.

  Raises:
    Exception: whatever pickling raises, for a leaf that cannot be sent.
  """
  arrays = []
  def take(leaf):
    if isinstance(leaf, (jax.Array, np.ndarray)) and leaf.dtype != object:
      arrays.append(np.asarray(leaf))
      return _Sent(arrays[-1].dtype, arrays[-1].shape)
    return leaf
  return pickle.dumps(jax.tree.map(take, tree)), arrays


def broadcast(tree: Any) -> Any:
  """Gives process 0's tree to all; what the others pass is ignored."""
  is_main = jax.process_index() == 0
  header, arrays = pack(tree) if is_main else (b'', [])
  is_sent = lambda x: isinstance(x, _Sent)
  sent = iter(arrays)
  def give(leaf):
    if not is_sent(leaf):
      return leaf
    data = _send(_bytes(next(sent)) if is_main else b'')
    return np.frombuffer(data, leaf.dtype).reshape(leaf.shape)
  return jax.tree.map(give, pickle.loads(_send(header)), is_leaf=is_sent)


def allgather(rows: types.PyTree) -> types.PyTree:
  """Concatenates the rows of all processes, in their order.

  Args:
    rows: host arrays [B_process, ...] of one structure in all processes; the
      number of rows may differ, the dtype and the rest of the shape must not.
  """
  leaves, structure = jax.tree.flatten(rows)
  specs = [pickle.loads(x) for x in _gather(
      pickle.dumps([(x.dtype, x.shape) for x in leaves]))]
  joined = []
  for i, leaf in enumerate(leaves):
    joined.append(np.concatenate([
        np.frombuffer(part, spec[i][0]).reshape(spec[i][1])
        for part, spec in zip(_gather(_bytes(leaf)), specs)]))
  return jax.tree.unflatten(structure, joined)


def _bytes(array: np.ndarray) -> np.ndarray:
  """Returns an array's bytes [n] uint8."""
  return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _blocks(size: int) -> list[tuple[int, int, int]]:
  """Returns (start, stop, places to send) of the blocks of `size` bytes.

  Places are powers of two, for every new number compiles a new collective.
  """
  return [(start, min(start + _BLOCK, size),
           min(1 << (min(size - start, _BLOCK) - 1).bit_length(), _BLOCK))
          for start in range(0, size, _BLOCK)]


def _words(size: int) -> np.ndarray:
  """Writes a size as two numbers of 32 bits."""
  return np.array(divmod(size, _BLOCK), np.int32)


def _size(words: Any) -> int:
  """Reads `_words`."""
  high, low = np.asarray(words).tolist()
  return high * _BLOCK + low


def _send(data: bytes | np.ndarray) -> bytearray:
  """Gives process 0's bytes to all."""
  data = np.frombuffer(data, np.uint8)
  size = _size(multihost_utils.broadcast_one_to_all(_words(data.size)))
  out = bytearray()
  for start, stop, places in _blocks(size):
    padded = np.zeros(places, np.uint8)
    part = data[start:stop]
    padded[:part.size] = part  # Other processes have none.
    got = np.asarray(multihost_utils.broadcast_one_to_all(padded))
    out += got[:stop - start].tobytes()
  return out


def _gather(data: bytes | np.ndarray) -> list[bytearray]:
  """Gives all processes the bytes of each."""
  data = np.frombuffer(data, np.uint8)
  sizes = [_size(x) for x in np.reshape(
      multihost_utils.process_allgather(_words(data.size)), (-1, 2))]
  out = [bytearray() for _ in sizes]
  for start, stop, places in _blocks(max(sizes)):
    padded = np.zeros(places, np.uint8)
    part = data[start:stop]
    padded[:part.size] = part
    every = np.reshape(
        multihost_utils.process_allgather(padded), (len(sizes), -1))
    for own, row, size in zip(out, every, sizes):
      own += row[:max(min(size, stop) - start, 0)].tobytes()
  return out
