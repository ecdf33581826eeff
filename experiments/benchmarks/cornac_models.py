"""TIGER, LETTER and SASRec of Cornac beside sidrec's, at equal wall-clock.

    python experiments/benchmarks/cornac_models.py --data=amazon14-beauty \
        --minutes=30 --output=FILE.json [--runs=DIR] [--letter_codes=FILE]

Needs the extra `rivals`. Same split, same training sequences, same item
vectors, same test targets with histories of at most 20 items, and sidrec's own
Recall and NDCG over the whole catalog. Settings are the package's:
  tiger   cornac.models.tiger.GRID_CONFIG (arXiv 2507.22224): residual k-means
          on raw vectors, 3 x 256 codes and one against collisions, T5 of 4 + 4
          layers, learning rate 5e-4, batch 256.
  letter  LETTER_CONFIG (LETTER_BEAUTY_CONFIG on Beauty), with the collaborative
          vectors of Cornac's SASRec of width 32. The three stages share the
          budget: .1 collaborative, .3 tokenizer, the rest generator. The
          tokenizer's k-means start cannot be cut short and takes long on
          catalogs of ten thousand items; --letter_codes=FILE gives codes
          instead (codes.npz of a sidrec run) and the generator the whole.
  sasrec  its defaults, but max_len = 20.

The clock, not a number of epochs, ends training; LETTER's cosine runs over the
budget. Selection is by NDCG@10 on validation users at even times; those looks
are not counted here, while the wall-clock of sidrec's runs counts everything.
Items without a training event are known to all: TIGER and LETTER can retrieve
them by their vectors, SASRec has an untrained vector for them. What beam search
does not reach is a miss; items of one score count as the mean over orders.
"""

import argparse
import collections
import glob
import importlib
import importlib.metadata
import json
import os
import sys
import time
from typing import Any, Sequence

from cornac import data as cornac_data
from cornac import models as cornac_models
from cornac.models import letter as letter_lib
from cornac.models import tiger as tiger_lib
import cornac_budget
import item_models
import numpy as np
import outcome
from sidrec import config as config_lib
from sidrec import data
from sidrec import metrics
from sidrec import types
import torch


KS = (5, 10)
_REACHED = -1e9  # Cornac scores what no beam reaches below that.


def training_set(dataset: data.Dataset, seed: int
                 ) -> cornac_data.SequentialDataset:
  """Returns the training split as Cornac has it: one session a user.

  Cornac's item indices are sidrec's, and all items are known.
  """
  events = dataset.examples('train', 'positives')
  user, item = dataset.event_user[events], dataset.event_item[events]
  order = np.argsort(user, kind='stable')  # Events are in order of time.
  rows = [(int(u), int(u), int(i), place) for place, (u, i) in enumerate(
      zip(user[order], item[order]))]
  known = collections.OrderedDict(
      (i, i) for i in range(dataset.spec.num_items))
  out = cornac_data.SequentialDataset.build(
      rows, fmt='USIT', global_iid_map=known, seed=seed)
  out.add_modalities(item_feature=cornac_data.FeatureModality(
      features=np.asarray(dataset.catalog.features.vectors, np.float32)))
  return out


def targets(dataset: data.Dataset, split: str, most: int) -> np.ndarray:
  """Returns the events to retrieve, evenly spread as `Evaluator` does."""
  events = dataset.examples(split, 'targets')
  if most and most < len(events):
    events = events[np.linspace(0, len(events) - 1, most).astype(int)]
  return events


def evaluate(model: Any, dataset: data.Dataset, events: np.ndarray
             ) -> dict[str, float]:
  """Returns Recall and NDCG of a Cornac model, and users a second."""
  batch = dataset.requests_of(events, np.arange(len(events)))
  target, found = dataset.event_item[events], {}
  began = time.perf_counter()
  for row in range(len(events)):
    history = batch.history.item[row][batch.history.segment[row] > 0].tolist()
    scores = np.asarray(model.score(int(batch.user[row]), history), np.float64)
    # What was not reached is no place of a list, however many there are.
    reached = np.where(scores > _REACHED, scores, -np.inf)
    ranked = item_models.best(reached[None], max(KS))
    rows = metrics.recall_ndcg(
        ranked.item, np.isfinite(ranked.score), target[row:row + 1], KS,
        scores=ranked.score)
    for name, value in rows.items():
      found.setdefault(f'retrieval/{name}', []).append(float(value[0]))
  seconds = time.perf_counter() - began
  return {name: float(np.mean(value)) for name, value in found.items()} | {
      'speed/retrieve_users_per_s': len(events) / seconds}


def read_codes(path: str, dataset: data.Dataset) -> np.ndarray:
  """Reads codes.npz of a run of sidrec; returns codes [V, L] by item number.

  Raises:
    types.InputError: they are not of this catalog.
  """
  with np.load(path) as found:
    item_id, codes = found['item_id'], found['codes']
  order = dataset.file_order  # Files have the items table's order.
  if not np.array_equal(item_id, dataset.item_ids[order]):
    raise types.InputError(f'{path}: not codes of the items of {dataset.name}')
  own = np.empty_like(codes)
  own[order] = codes
  return own


def make_tiger(budget: cornac_budget.Budget, **kwargs: Any) -> Any:
  """Returns TIGER by GRID_CONFIG; validation is the budget's."""
  return cornac_budget.timed(cornac_models.TIGER, budget)(
      **tiger_lib.GRID_CONFIG | dict(
          n_epochs=10 ** 6, model_selection='last') | kwargs)


def make_letter(
    budget: cornac_budget.Budget, train: cornac_data.SequentialDataset,
    beauty: bool, codes: np.ndarray | None, **kwargs: Any) -> Any:
  """Returns LETTER; trains the collaborative vectors at once.

  Args:
    budget: of all stages.
    train: the training split.
    beauty: whether the data set has a configuration of its own.
    codes: [V, L] to use, None: of its own tokenizer.
    **kwargs: further settings.
  """
  config = dict(letter_lib.LETTER_BEAUTY_CONFIG if beauty
                else letter_lib.LETTER_CONFIG)
  # By the clock: see `cornac_budget.Keeper`.
  config.update(n_epochs=10 ** 6, model_selection='last',
                lr_schedule='constant', rqvae_kmeans_jobs=_cores())
  if codes is None:
    own = cornac_models.SASRec(
        embedding_dim=config['rqvae_latent_dim'], n_epochs=10 ** 6,
        max_len=kwargs['max_len'], seed=kwargs['seed'], device=device())
    share = cornac_budget.COLLABORATIVE
    with cornac_budget.until(lambda: budget.spent() >= share):
      own.fit(train)
    table = own.model.item_emb.weight.detach().cpu().numpy()
    num_items = len(train.iid_map)
    config.update(cf_embeddings=table[:num_items],
                  cf_embedding_ids=list(range(num_items)))
  else:
    config.update(precomputed_semantic_ids=codes, cf_weight=0.,
                  rqvae_num_levels=codes.shape[1])
  return cornac_budget.timed(cornac_models.LETTER, budget)(**config | kwargs)


def make_sasrec(budget: cornac_budget.Budget, **kwargs: Any) -> Any:
  """Returns SASRec; validation is the budget's."""

  class Timed(cornac_models.SASRec):  # pylint: disable=missing-class-docstring

    def fit(self, *args):
      budget.keep(self, lambda: super(Timed, self).fit(*args))
      return self

  return Timed(n_epochs=10 ** 6, **kwargs)


def device() -> str:
  """Returns PyTorch's device."""
  return 'cuda' if torch.cuda.is_available() else 'cpu'


def _cores() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def warm() -> None:
  """Does what PyTorch and Cornac put off until they are used first."""
  for name in ('tiger', 'letter', 'sasrec'):
    importlib.import_module(f'cornac.models.{name}.{name}')
  module = torch.nn.Linear(1, 1)
  module(torch.ones(1, 1)).sum().backward()
  torch.optim.AdamW(module.parameters()).step()


def run(name: str, dataset: data.Dataset, args: argparse.Namespace
        ) -> dict[str, Any]:
  """Trains and evaluates one model; returns its row."""
  train = training_set(dataset, args.seed)
  valid = targets(dataset, 'valid', args.valid_users)
  judge = lambda model: evaluate(model, dataset, valid)['retrieval/ndcg@10']
  shared = dict(seed=args.seed, device=device(),
                max_len=dataset.spec.history_length)
  budget = cornac_budget.Budget(60 * args.minutes, judge, args.looks)
  if name == 'sasrec':
    model = make_sasrec(budget, **shared)
  elif name == 'tiger':
    model = make_tiger(budget, n_beams=args.beam, **shared)
  else:
    codes = (read_codes(args.letter_codes, dataset) if args.letter_codes
             else None)
    model = make_letter(budget, train, 'beauty' in dataset.name, codes,
                        n_beams=args.beam, **shared)
  model.fit(train)
  seconds, keeper = time.perf_counter() - budget.began, budget.keeper
  if not keeper.steps:
    return dict(method=f'cornac {name}', wall_seconds=seconds, error=(
        'what comes before the generator took the whole budget, '
        f'{seconds:.0f} s of {budget.seconds:.0f}'))
  events = targets(dataset, 'test', args.users)
  found = evaluate(model, dataset, events)
  row = dict(
      method=f'cornac {name}', dataset=dataset.name, seeds=[args.seed],
      wall_seconds=seconds, budget_seconds=budget.seconds, steps=keeper.steps,
      curve=keeper.curve, users=len(events), metrics=dict(test={
          key: dict(mean=value) for key, value in found.items()}))
  if hasattr(model, 'sid_table'):
    row['num_codes'] = len(np.unique(model.sid_table, axis=0))
  return row


def sidrec_runs(root: str) -> list[dict[str, Any]]:
  """Returns what the results.json files below a folder say."""
  rows = []
  for path in sorted(glob.glob(
      os.path.join(root, '**', 'results.json'), recursive=True)):
    with open(path, encoding='utf-8') as stream:
      found = json.load(stream)
    rows.append({key: found.get(key) for key in (
        'method', 'dataset', 'seeds', 'steps', 'wall_seconds', 'device')}
                | dict(metrics=dict(test=found['metrics']['test'])))
  return rows


def describe(row: dict[str, Any]) -> str:
  """Returns a row of the table."""
  if 'error' in row:
    return f'{row["method"]:24} left out: {row["error"]}'
  test = row['metrics']['test']
  values = ''.join(
      f'  {name}@{k} {test[key]["mean"]:.4f}' for k in KS
      for name in ('recall', 'ndcg')
      if (key := f'retrieval/{name}@{k}') in test)
  return (f'{row["method"]:24} {row["wall_seconds"] or 0:8.0f} s '
          f'{row["steps"] or 0:8} steps{values}')


def load(name: str) -> data.Dataset:
  """Loads a data set by name or folder as generative methods do.

  Raises:
    types.InputError: it has no item vectors.
  """
  config = config_lib.next_item_config()
  config.data.split = 'leave_one_out'
  if os.path.isdir(name):
    config.data.dir = name
  else:
    config.data.name = name
  dataset = data.load(config.data, config.data.seed)
  if not dataset.spec.items.num_dims:
    raise types.InputError(f'{name}: TIGER and LETTER of Cornac need item '
                           'vectors; add item_embeddings.npy')
  return dataset


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the command; returns the exit status."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  add = parser.add_argument
  add('--output', required=True, help='JSON file to write')
  add('--data', default='amazon23-mini', help='name or folder')
  add('--minutes', type=float, default=30., help='to train each model')
  add('--models', default='tiger,letter,sasrec')
  add('--beam', type=int, default=50)
  add('--users', type=int, default=0, help='test users, evenly spread; 0: all')
  add('--valid_users', type=int, default=200, help='of a validation; 0: all')
  add('--looks', type=int, default=5, help='validations within the budget')
  add('--seed', type=int, default=0)
  add('--runs', default='', help='folder with workdirs of sidrec')
  add('--letter_codes', default='', help='codes.npz of a sidrec run')
  args = parser.parse_args(argv)
  names = args.models.split(',')
  if set(names) - {'tiger', 'letter', 'sasrec'}:
    parser.error('--models: one or more of tiger,letter,sasrec')
  torch.set_num_threads(_cores())
  warm()
  dataset = load(args.data)
  rows = []
  for name in names:
    outcome.log(f'{name}: {args.minutes:g} minutes')
    try:
      rows.append(run(name, dataset, args))
    except (ImportError, types.InputError) as error:
      rows.append(dict(method=f'cornac {name}', error=str(error)))
    print(describe(rows[-1]), flush=True)
  if args.runs:
    rows += sidrec_runs(args.runs)
  print(f'{dataset.name}, {dataset.protocol}:')
  print('\n'.join(map(describe, rows)))
  version = importlib.metadata.version
  with open(args.output, 'w', encoding='utf-8') as stream:
    json.dump(dict(
        dataset=dataset.name, cores=_cores(), device=device(),
        settings=vars(args), versions={
            p: version(p) for p in ('cornac', 'torch', 'transformers')},
        rows=rows), stream, indent=1)
    stream.write('\n')
  return 0


if __name__ == '__main__':
  sys.exit(main())
