"""How large a catalog can be: builds a trie of random codes and decodes it.

    python experiments/benchmarks/trie_scale.py --items=100000000 [--check=8]

Prints seconds, peak memory, bytes an item and milliseconds a search. --check=N
compares N users' results with a search that knows no trie: ranges of the
sorted catalog, found by bisection, one prefix after the other.
"""

import argparse
import json
import resource
import sys
import time
from typing import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from sidrec import decode
from sidrec import trie


def peak_gib() -> float:
  """Returns the most memory this process has held."""
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** 20


def packed(codes: np.ndarray, codebook: int) -> np.ndarray:
  """Returns codes [V, L] as one integer each, in the same order."""
  out = np.zeros(len(codes), np.int64)
  for column in codes.T:
    out = out * codebook + column
  return out


def search_sorted(keys: np.ndarray, table: np.ndarray, user: int, levels: int,
                  beam: int) -> list[tuple[int, np.float32]]:
  """Beam search over the sorted keys of a catalog; returns (key, score)."""
  codebook = table.shape[1]
  beams = [(0, np.float32(0))]
  for level in range(levels):
    below = codebook ** (levels - 1 - level)
    grown = []
    for prefix, score in beams:
      low, high = np.searchsorted(
          keys, [prefix * codebook * below, (prefix + 1) * codebook * below])
      codes = np.unique(keys[low:high] // below % codebook)
      row = (prefix % codebook + user) % codebook if level else user
      scores = score + table[row, codes]
      grown += zip((prefix * codebook + codes).tolist(), scores)
    beams = sorted(grown, key=lambda x: (-x[1], x[0]))[:beam]
  return beams


def model(table: jax.Array, prefix: jax.Array, state: jax.Array):
  """Scores by the last code and the user, read from a table."""
  user = state
  if prefix.shape[-1]:
    row = (prefix[..., -1] + user) % table.shape[0]
  else:
    row = user
  start = row * table.shape[1]
  return (lambda found: table.reshape(-1)[
      found.take(start) + found.code]), user


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--items', type=int, default=10_000_000)
  add('--codebook', type=int, default=4096)
  add('--levels', type=int, default=4)
  add('--beam', type=int, default=50)
  add('--users', type=int, default=8)
  add('--check', type=int, default=0, help='users to compare')
  args = parser.parse_args(argv)
  rng = np.random.default_rng(0)
  dtype = np.uint16 if args.codebook <= 1 << 16 else np.int32
  codes = rng.integers(0, args.codebook, (args.items, args.levels), dtype)
  found = dict(vars(args), gib_codes=codes.nbytes / 2 ** 30)
  began = time.perf_counter()
  t = trie.build(codes)
  found.update(seconds_build=time.perf_counter() - began,
               gib_peak_build=peak_gib(),
               bytes_an_item=trie.nbytes(t) / args.items)
  print(json.dumps(found), flush=True)

  bounds = trie.bounds(t, args.beam)
  table = rng.normal(size=(args.codebook,) * 2).astype(np.float32)
  placed, on_device = jax.tree.map(jnp.asarray, t), jnp.asarray(table)
  user = jnp.arange(args.users, dtype=jnp.int32)[:, None]
  run = jax.jit(lambda t, table, user: decode.beam_search(
      lambda prefix, state: model(table, prefix, state), t, state=user,
      beam_size=args.beam, batch_size=args.users, bounds=bounds))
  beams = jax.device_get(run(placed, on_device, user))
  spent = []
  for _ in range(20):
    began = time.perf_counter()
    jax.block_until_ready(run(placed, on_device, user))
    spent.append(time.perf_counter() - began)
  assert beams.mask.all() and (codes[beams.item] == beams.code).all()
  print(json.dumps(dict(ms_search=float(np.median(spent)) * 1e3,
                        gib_peak=peak_gib())), flush=True)
  if args.check:
    keys = np.sort(packed(codes, args.codebook))
    for user in range(min(args.check, args.users)):
      want = search_sorted(keys, table, user, args.levels, args.beam)
      got = packed(beams.code[user], args.codebook)
      # Codes that several items share stand beside each other.
      first = np.append(True, got[1:] != got[:-1])
      n = np.count_nonzero(first)
      np.testing.assert_array_equal(got[first], [w[0] for w in want[:n]])
      np.testing.assert_array_equal(
          beams.score[user][first], [w[1] for w in want[:n]])
    print(f'{min(args.check, args.users)} users: equal to the search of the '
          'sorted catalog')
  return 0


if __name__ == '__main__':
  sys.exit(main())
