"""Tests of `sidrec.rng`."""

import subprocess
import sys

import jax
import numpy as np
import pytest

from sidrec import rng


def _data(key):
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_stream_follows_the_written_derivation():
  # crc32(b'123456789') is the check value of the CRC-32 standard.
  key = jax.random.fold_in(jax.random.key(7), 0xCBF43926)
  key = jax.random.fold_in(jax.random.fold_in(key, 11), 3)
  assert _data(rng.stream(7, '123456789', 11, 3)) == _data(key)
  assert _data(rng.stream(jax.random.key(7), '123456789', 11, 3)) == _data(key)


def test_streams_differ_in_every_part():
  parts = [(s, n, t, i) for s in (0, 1) for n in ('init', 'dropout')
           for t in (None, 0, 1, 2) for i in (None, 0, 1, 2)]
  assert len({_data(rng.stream(*p)) for p in parts}) == len(parts)


def test_same_under_jit_and_in_another_process():
  here = _data(rng.stream(3, 'gumbel', 5, 1))
  jitted = jax.jit(lambda s, t, i: rng.stream(s, 'gumbel', t, i))
  assert _data(jitted(3, 5, 1)) == here
  code = ('import jax; from sidrec import rng; print(tuple(jax.random.key_data('
          'rng.stream(3, "gumbel", 5, 1)).tolist()))')
  there = subprocess.run(
      [sys.executable, '-c', code], capture_output=True, text=True, check=True)
  assert there.stdout.strip() == str(here)


@pytest.mark.parametrize('num_parts', [1, 2, 4])
def test_noise_of_a_row_ignores_the_split(num_parts):
  key = rng.stream(0, 'noise', 9)
  draw = jax.vmap(lambda k: jax.random.normal(k, (3,)))
  row = np.arange(8, dtype=np.int32)
  whole = draw(rng.per_row(key, row))
  parts = [draw(rng.per_row(key, r)) for r in np.split(row, num_parts)]
  np.testing.assert_array_equal(whole, np.concatenate(parts))
  assert len(np.unique(np.asarray(whole))) == whole.size
  expected = jax.random.normal(jax.random.fold_in(key, 5), (3,))
  np.testing.assert_array_equal(whole[5], expected)
