"""Host values as JSON and arrays, for the way from process to process.

JSON has the structure and whatever is no array; arrays travel by themselves.
Nothing that arrives is run: the kinds of values below are all there are.

  JSON value               stands for
  null, true, 1, .5, "a"   None, bool, int, float, str
  ["list", ...]            list, by its values
  ["tuple", ...]           tuple
  ["dict", [key, value], ...]
  ["named", NAME, ...]     a NamedTuple of those that both sides know
  ["array", n]             array n
  ["scalar", n]            the NumPy scalar in array n
"""

import json
from typing import Any, Sequence

import jax
import numpy as np

_PLAIN = (type(None), bool, int, float, str)
_KINDS = 'biufcMmSU'  # Of dtypes whose text says all of them.


def pack(tree: Any, named: Sequence[type] = ()
         ) -> tuple[bytes, list[np.ndarray]]:
  """Returns (the structure as JSON, the arrays) of a tree.

  Args:
    tree: None, bool, int, float, str, NumPy scalars, NumPy and JAX arrays in
      lists, tuples, dicts and NamedTuples.
    named: the NamedTuples that may be in it.

  Raises:
    TypeError: another value; the text says where it is.
  """
  arrays = []

  def add(kind, array, where):
    _dtype_name(array.dtype, where)
    arrays.append(np.asarray(array))
    return [kind, len(arrays) - 1]

  def write(value, where):
    if type(value) in _PLAIN:
      return value
    if isinstance(value, np.generic):
      return add('scalar', value, where)
    if isinstance(value, (np.ndarray, jax.Array)):
      return add('array', value, where)
    if type(value) in named:
      return ['named', type(value).__name__, *(
          write(x, f'{where}.{name}') for name, x in value._asdict().items())]
    if type(value) in (list, tuple):
      return [type(value).__name__, *(
          write(x, f'{where}[{i}]') for i, x in enumerate(value))]
    if type(value) is dict and all(type(key) in _PLAIN for key in value):
      return ['dict', *(
          [key, write(x, f'{where}[{key!r}]')] for key, x in value.items())]
    raise _refused(where, type(value).__name__)

  written = write(tree, 'value')
  specs = [[_dtype_name(x.dtype, 'value'), x.shape] for x in arrays]
  return json.dumps({'tree': written, 'arrays': specs}).encode(), arrays


def specs(header: bytes) -> list[tuple[np.dtype, tuple[int, ...]]]:
  """Returns (dtype, shape) of each array that belongs to a structure."""
  return [(np.dtype(name), tuple(shape))
          for name, shape in json.loads(header)['arrays']]


def unpack(header: bytes, arrays: Sequence[np.ndarray],
           named: Sequence[type] = ()) -> Any:
  """Returns the tree of `pack`; JAX arrays come back as NumPy.

  Args:
    header: the structure.
    arrays: as `specs` describes them.
    named: as `pack` got them.
  """
  makers = {kind.__name__: kind for kind in named}

  def read(value):
    if not isinstance(value, list):
      return value
    kind, *rest = value
    if kind == 'dict':
      return {key: read(x) for key, x in rest}
    if kind == 'array':
      return arrays[rest[0]]
    if kind == 'scalar':
      return arrays[rest[0]][()]
    if kind == 'named':
      return makers[rest[0]](*map(read, rest[1:]))
    return {'list': list, 'tuple': tuple}[kind](map(read, rest))

  return read(json.loads(header)['tree'])


def _dtype_name(dtype: Any, where: str) -> str:
  """Returns what `np.dtype` makes the same dtype of."""
  if isinstance(dtype, np.dtype):
    if dtype.kind in _KINDS:
      return dtype.str
    # The short floats that JAX adds to NumPy go by their names.
    if dtype.kind == 'V' and dtype.names is None and dtype.type is not np.void:
      return dtype.name
  raise _refused(where, f'array of {dtype}')


def _refused(where: str, what: str) -> TypeError:
  return TypeError(
      f'{where} is of type {what}, which does not travel between processes: '
      'send arrays, None, bool, int, float and str, in dicts, lists and tuples')
