"""DIG's retrieval by beam search against scoring every item with its ranker.

    python experiments/benchmarks/dig_retrieval.py --workdir=DIR [--check=16]

DIR is a finished run of experiments/dig.py. Prints users per second of the
search at several widths, and of the ranker over the whole catalog (without the
time to look up the user-item features that only the ranker reads). --check=N
also searches with a beam as wide as the catalog and compares N users' ten best
with those of all items' retrieval scores.
"""

import argparse
import sys
import time
from typing import Any, Callable, Sequence

import jax
import ml_collections
import numpy as np
from sidrec import evaluate


def seconds(fn: Callable[[], Any], calls: int = 3) -> float:
  """Returns the median time of a call, after the first (it compiles)."""
  fn()
  spent = []
  for _ in range(calls):
    began = time.perf_counter()
    fn()
    spent.append(time.perf_counter() - began)
  return float(np.median(spent))


def opened(workdir: str, beam: int) -> evaluate.Loaded:
  """Opens a run to be searched with another beam."""
  saved = evaluate.load(workdir).config
  config = ml_collections.ConfigDict(saved.to_dict())
  config.eval.beam_size = beam
  return evaluate.load(workdir, config)


def all_scores(run: evaluate.Loaded, users: Sequence[Any], chunk: int,
               token: bool) -> tuple[np.ndarray, float]:
  """Scores every item for every user.

  Args:
    run: the run.
    users: B ids.
    chunk: items a call.
    token: by the retrieval path instead of the ranker's.

  Returns:
    (scores [B, V], seconds in the model).
  """
  score = run.token_score if token else run.score
  batch, num = run.dataset.requests(users), len(run.dataset.item_ids)
  parts, spent = [], 0.
  for start in range(0, num, chunk):
    item = np.arange(start, start + chunk) % num
    asked = run.dataset.with_candidates(
        batch, None, np.tile(item, (len(users), 1)))
    if not start:
      score(asked)  # Compiles.
    began = time.perf_counter()
    parts.append(np.asarray(score(asked)))
    spent += time.perf_counter() - began
  return np.concatenate(parts, 1)[:, :num], spent


def compare(run: evaluate.Loaded, users: Sequence[Any], chunk: int) -> int:
  """Returns for how many users both ways give the same ten items in order."""
  found = run.search(run.dataset.requests(users)).item[:, :10]
  score, _ = all_scores(run, users, chunk, token=True)
  best = np.argsort(-score, 1, kind='stable')[:, :10]
  np.testing.assert_allclose(
      np.take_along_axis(score, found, 1), np.take_along_axis(score, best, 1),
      rtol=1e-4, atol=1e-4)
  return int((found == best).all(1).sum())


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--workdir', required=True)
  add('--users', type=int, default=32, help='users a call')
  add('--beams', type=int, nargs='+', default=[10, 50, 200])
  add('--chunk', type=int, default=512, help='items a call of the ranker')
  add('--check', type=int, default=0, help='users to compare at full width')
  args = parser.parse_args(argv)
  for beam in args.beams:
    run = opened(args.workdir, beam)
    users = run.dataset.user_ids[:args.users]
    batch = run.dataset.requests(users)
    took = seconds(lambda run=run, batch=batch: run.search(batch))
    print(f'beam {beam:4}: {args.users / took:10.1f} users/s', flush=True)
  _, took = all_scores(run, users, args.chunk, token=False)
  print(f'ranker on all {len(run.dataset.item_ids)} items: '
        f'{args.users / took:10.1f} users/s', flush=True)
  if args.check:
    run = opened(args.workdir, len(run.dataset.item_ids))
    same = compare(run, users[:args.check], args.chunk)
    print(f'full width: {same} of {args.check} users have the same ten items '
          'in the same order, all the same scores')
  return 0


if __name__ == '__main__':
  jax.config.update('jax_numpy_rank_promotion', 'raise')
  sys.exit(main())
