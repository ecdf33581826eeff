"""How fast is constrained decoding, and what does each part of it cost?

    python experiments/benchmarks/decode.py --output=FILE.json [--plot=FILE.png]
        [--grid=quick|static|full] [--static=PATH]

Times sidrec's beam search against the same model without a constraint, with a
dense mask, with a Python trie behind a callback, and, where --static names a
checkout of github.com/youtube/static-constraint-decoding, against STATIC (arXiv
2602.22647). All compute the same search in one run on one machine; sidrec's
returns item ids and scores as well. Two models: 'lookup', log-probabilities
read from a table by the last code, so that the decoder itself is timed; and
'random', logits drawn anew at each level and normalized over the codebook.
Set the number of cores from outside: `taskset -c 0 python ...`.
"""

import argparse
import itertools
import json
import os
import sys
import time
from typing import Any, Callable, NamedTuple, Sequence

import decode_catalogs
import decode_rivals
import jax
import jax.numpy as jnp
import numpy as np
from sidrec import decode
from sidrec import trie
from sidrec import types
from sidrec.decode import search
from sidrec.decode import selection


class Case(NamedTuple):
  """One measured setting. catalog: 'random' or 'beauty' (see decode_catalogs)."""
  catalog: str
  items: int
  codebook: int
  levels: int
  batch: int
  beam: int


# The settings that the README quotes.
STATIC_CASES = (
    Case('beauty', 12_088, 256, 4, 32, 50),
    Case('beauty', 12_088, 256, 4, 32, 10),
    Case('random', 100_000, 2048, 4, 2, 70),
    Case('random', 1_000_000, 2048, 8, 2, 70),
    Case('random', 10_000_000, 2048, 8, 2, 70),
)
QUICK_CASES = (Case('random', 10_000, 256, 3, 16, 10),
               Case('random', 100_000, 2048, 4, 16, 50))


def full_cases() -> list[Case]:
  """Returns the grid: sizes x codebooks x levels x beams x batches."""
  cases = []
  for items, codebook, levels, beam, batch in itertools.product(
      (10_000, 100_000, 1_000_000, 10_000_000), (256, 2048), (3, 4, 8),
      (10, 50, 200), (1, 16, 256)):
    if items * 2 <= codebook ** levels:
      cases.append(Case('random', items, codebook, levels, batch, beam))
  return cases


def median_ms(fn: Callable[[], Any], seconds: float) -> float:
  """Returns the median time of a call in ms, after the first (it compiles)."""
  jax.block_until_ready(fn())
  spent = []
  while len(spent) < 5 or sum(spent) < seconds and len(spent) < 200:
    began = time.perf_counter()
    jax.block_until_ready(fn())
    spent.append(time.perf_counter() - began)
  return float(np.median(spent)) * 1e3


class Lookup:
  """Log-probabilities by the last code, read from a table."""

  def __init__(self, codebook: int):
    self.logits = jax.random.normal(jax.random.key(0), (codebook, codebook))
    self.table = jax.nn.log_softmax(self.logits)

  def sparse(self, table: jax.Array, prefix: jax.Array, state: Any):
    """The children form of `decode.beam_search`."""
    start = _last(prefix) * table.shape[1]
    return (lambda found: table.reshape(-1)[
        found.take(start) + found.code]), state

  def dense(self, table: jax.Array, prefix: jax.Array, state: Any):
    """The form with the whole codebook."""
    return table[_last(prefix)], state


class Random:
  """Logits that are drawn anew at each level, as STATIC's benchmark does."""

  def __init__(self, codebook: int):
    self.table = jnp.zeros((codebook,))

  def dense(self, table: jax.Array, prefix: jax.Array, state: Any):
    """The form with the whole codebook."""
    key = jax.random.fold_in(jax.random.key(0), prefix.shape[-1])
    return jax.random.uniform(
        key, (*prefix.shape[:2], table.shape[0])), state

  sparse = dense


def _last(prefix: jax.Array) -> jax.Array:
  if prefix.shape[-1]:
    return prefix[..., -1]
  return jnp.zeros(prefix.shape[:2], jnp.int32)


MODELS = {'lookup': Lookup, 'random': Random}


def measure(case: Case, model_name: str, rivals: Sequence[str], static: str,
            seconds: float, codes: np.ndarray, t: types.Trie
            ) -> list[dict[str, Any]]:
  """Times all decoders of one case; returns one row a decoder."""
  model = MODELS[model_name](case.codebook)
  normalize = model_name == 'random'
  bounds = trie.bounds(t, case.beam)
  placed = jax.tree.map(jnp.asarray, t)
  run = jax.jit(lambda t, table: decode.beam_search(
      lambda prefix, state: model.sparse(table, prefix, state), t,
      beam_size=case.beam, batch_size=case.batch, bounds=bounds,
      normalize=normalize))
  beams = jax.device_get(run(placed, model.table))
  check(beams, codes)
  ms = median_ms(lambda: run(placed, model.table), seconds)
  rows = [dict(decoder='sidrec', ms=ms, trie_bytes=trie.nbytes(t),
               temp_bytes=temp_bytes(run, placed, model.table),
               **split(case, model, normalize, bounds, placed, ms, seconds))]
  context = decode_rivals.Context(
      codes, placed, bounds, case.codebook, case.batch, case.beam, model,
      normalize, static)
  for name in rivals:
    try:
      for label, fn in decode_rivals.RIVALS[name](context):
        rows.append(dict(decoder=label, ms=median_ms(fn, seconds)))
    except (MemoryError, ValueError, jax.errors.JaxRuntimeError) as error:
      rows.append(dict(decoder=name, error=str(error).splitlines()[0]))
  for row in rows:
    row.update(case._asdict(), model=model_name)
    if 'ms' in row:
      row['users_per_s'] = case.batch / row['ms'] * 1e3
      row['ms_per_step'] = row['ms'] / case.levels
  return rows


def check(beams: types.Beams, codes: np.ndarray) -> None:
  """Stops the benchmark where what came out is not in the catalog."""
  np.testing.assert_array_equal(
      codes[beams.item[beams.mask]], beams.code[beams.mask])


def temp_bytes(run: Any, *args: Any) -> int | None:
  """Returns the scratch memory of a compiled call, where XLA tells it."""
  analysis = run.lower(*args).compile().memory_analysis()
  return getattr(analysis, 'temp_size_in_bytes', None)


def split(case: Case, model: Any, normalize: bool, bounds: trie.Bounds,
          t: types.Trie, ms: float, seconds: float) -> dict[str, float]:
  """Returns how a call divides into model, top-k and the constraint."""
  widths = [1] + [min(case.beam, c.shape[0]) for c in t.code[:-1]]
  rng = np.random.default_rng(0)

  def dense(table):
    total = 0.
    for level, width in enumerate(widths):
      prefix = jnp.zeros((case.batch, width, level), jnp.int32) + (
          jnp.arange(width, dtype=jnp.int32)[None, :, None] % case.codebook)
      found = None
      if model.sparse != model.dense:
        size, steps = search.rungs(bounds, level, width, 1, case.beam)
        slots = steps[-1] * (size or width)
        zeros = lambda n: jnp.zeros((case.batch, n), jnp.int32)
        found = decode.Children(
            beam=zeros(slots // size) if size else None,
            first=zeros(slots // size if size else width), code=zeros(slots),
            node=zeros(slots), mask=zeros(slots) > 0)
      answer, _ = model.sparse(table, prefix, None)
      scores = answer(found) if callable(answer) else answer
      if normalize:
        scores = scores - jax.nn.logsumexp(scores, -1, keepdims=True)
      total += scores.sum()
    return total

  model_ms = median_ms(lambda fn=jax.jit(dense): fn(model.table), seconds)
  keys = []
  for level, width in enumerate(widths):
    size, steps = search.rungs(bounds, level, width, 1, case.beam)
    slots = steps[-1] * (size or width)
    keys.append(jnp.asarray(rng.normal(
        size=(case.batch, slots)).astype(np.float32)))
  pick = jax.jit(lambda keys: [
      selection.best(key, min(case.beam, key.shape[1])) for key in keys])
  top_ms = median_ms(lambda: pick(keys), seconds)
  return dict(ms_model=model_ms, ms_top_k=top_ms,
              ms_constraint=max(ms - model_ms - top_ms, 0.))


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--output', required=True, help='JSON file to write')
  add('--plot', default='', help='PNG file to write (needs matplotlib)')
  add('--grid', default='quick', choices=['quick', 'static', 'full'])
  add('--static', default='', help="checkout of STATIC's repository")
  add('--models', nargs='+', default=list(MODELS), choices=list(MODELS))
  add('--rivals', nargs='*', default=list(decode_rivals.RIVALS),
      choices=list(decode_rivals.RIVALS))
  add('--seconds', type=float, default=1., help='to time each call')
  add('--max_items', type=int, default=10_000_000)
  args = parser.parse_args(argv)
  rivals = [r for r in args.rivals if r != 'static' or args.static]
  cases = dict(quick=QUICK_CASES, static=STATIC_CASES,
               full=full_cases())[args.grid]
  rows, built, key = [], None, None
  for case in (c for c in cases if c.items <= args.max_items):
    if key != case[:4]:
      key, built = case[:4], None
      codes = decode_catalogs.make(*key)
      began = time.perf_counter()
      built = codes, trie.build(codes)
      took = time.perf_counter() - began
      print(f'{case.catalog} {case.items:,} items, K = {case.codebook}, '
            f'L = {case.levels}: trie in {took:.2f} s, '
            f'{trie.nbytes(built[1]) / case.items:.1f} bytes an item',
            flush=True)
    for model in args.models:
      for row in measure(
          case, model, rivals, args.static, args.seconds, *built):
        row.update(build_seconds=took)
        rows.append(row)
        print(f'  {model:6} {case.batch:3} x {case.beam:3}  '
              f'{row["decoder"]:24}' + (
                  f'{row["ms"]:10.3f} ms {row["users_per_s"]:12,.0f} users/s'
                  if 'ms' in row else row['error']), flush=True)
  device = jax.devices()[0]
  found = dict(
      device=device.device_kind, platform=device.platform, jax=jax.__version__,
      cores=len(os.sched_getaffinity(0)), rows=rows)
  with open(args.output, 'w', encoding='utf-8') as stream:
    json.dump(found, stream, indent=1)
    stream.write('\n')
  if args.plot:
    import decode_plot  # pylint: disable=g-import-not-at-top
    decode_plot.draw(found, args.plot)
  return 0


if __name__ == '__main__':
  sys.exit(main())
