"""What travels between processes comes back as it was, or is refused."""

import collections
import json
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sidrec.parallel import encoding


class Pair(NamedTuple):
  left: Any
  right: Any = ()


def _through(tree, named=()):
  header, arrays = encoding.pack(tree, named)
  sent = [np.frombuffer(x.tobytes(), dtype).reshape(shape)
          for x, (dtype, shape) in zip(arrays, encoding.specs(header))]
  assert isinstance(json.loads(header), dict)
  return encoding.unpack(header, sent, named)


def test_plain_values_keep_their_types_and_order():
  tree = {'b': [1, 2.5, None, True, 'ä"\n'], 'a': (), 3: [], None: {},
          'big': 2**80, 'small': 5e-324, 'list': ['array', 0], 'minus': -0.}
  back = _through(tree)
  assert back == tree and list(back) == list(tree)
  assert type(back['b'][3]) is bool and type(back['a']) is tuple
  assert math.copysign(1, back['minus']) == -1
  assert math.isnan(_through(math.nan)) and _through(-math.inf) == -math.inf


@pytest.mark.parametrize('array', [
    np.arange(6).reshape(2, 3) + 2**40, np.zeros((0, 3), np.float16),
    np.array(True), np.array(['a', 'bcd']), np.array([b'x']),
    np.array(['2020-01-01'], 'M8[ms]'), np.arange(3, dtype='>i4'),
    np.array([1 + 2j]), jnp.arange(3, dtype=jnp.bfloat16)])
def test_arrays_keep_bits_dtype_and_shape(array):
  back = _through({'x': [array]})['x'][0]
  array = np.asarray(array)
  assert isinstance(back, np.ndarray)
  assert (back.dtype, back.shape) == (array.dtype, array.shape)
  assert back.tobytes() == array.tobytes()


def test_numpy_scalars_and_named_tuples():
  back = _through(np.float32(.1))
  assert back == np.float32(.1) and type(back) is np.float32
  assert type(_through(np.float64(.1))) is np.float64
  back = _through(Pair({'a': np.arange(2)}, Pair(1)), (Pair,))
  assert type(back) is Pair and back.right == Pair(1)
  np.testing.assert_array_equal(back.left['a'], [0, 1])


@pytest.mark.parametrize('value', [
    {1, 2}, b'bytes', object(), Pair(1), lambda: 0, 1j,
    collections.OrderedDict(a=1), {(1, 2): 3}, np.array([object()]),
    np.zeros(2, [('a', int)]), np.void(b'ab'), jax.random.key(0)])
def test_other_values_are_refused_with_their_place(value):
  with pytest.raises(TypeError, match=r"value\['x'\]\[1\] is of type"):
    encoding.pack({'x': [0, value]})
