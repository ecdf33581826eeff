"""Opens a finished run: evaluate it, export it, recommend with it."""

import functools
import os
from typing import Any, Sequence

from etils import epath
import jax
import ml_collections
import numpy as np

from sidrec import checkpoint
from sidrec import config as config_lib
from sidrec import data
from sidrec import methods
from sidrec import parallel
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.data import requests
from sidrec.evaluate import evaluator as evaluator_lib
from sidrec.evaluate import files
from sidrec.evaluate import lists
from sidrec.evaluate import run_identity
from sidrec.evaluate import settings
from sidrec.evaluate import unified
from sidrec.methods import base


class Loaded:
  """A finished run, ready to use; see `load`.

  config: of the run. dataset: encoded. codes: [V, L] int32 or None.
  sizes: K_1, ..., K_L.
  metrics: what results.json holds, or {} before the run's end.
  alpha: what the ranking path counts for in the order by both paths; None
    before the run's end.
  """

  def __init__(
      self, config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset,
      evaluator: evaluator_lib.Evaluator, state: types.TrainState,
      results: dict[str, Any]):
    """See `load`."""
    self.config, self.dataset = config, dataset
    self.metrics = results.get('metrics', {})
    self.alpha = unified.of_results(results)
    self._evaluator, self._state = evaluator, state
    self.codes = evaluator.codes(state)
    self.sizes = evaluator.sizes
    self._find = None

  def evaluate(self, split: str = 'test') -> dict[str, float]:
    """Computes a split's metrics again, on as many targets as the run did."""
    most = {'valid': self.config.eval.valid_users,
            'test': self.config.eval.test_users}
    return self._evaluator.run(
        self._state, split, most.get(split, 0), alpha=self.alpha)

  def score(self, batch: types.Batch) -> np.ndarray:
    """Returns ranking logits [B, C] of a batch's candidates."""
    return self._evaluator.score(self._state, batch)

  def token_score(self, batch: types.Batch) -> np.ndarray:
    """Returns retrieval logits [B, C]: what a search gives these items."""
    return self._evaluator.token_score(self._state, batch)

  def search(self, batch: types.Batch) -> types.Beams:
    """Retrieves for requests [B], best first by the retrieval path.

    Args:
      batch: of `dataset.requests`; candidates are not read.

    Raises:
      types.InputError: if the method cannot retrieve.
    """
    if not self._evaluator.can_retrieve:
      raise types.InputError(
          f'config.method={self.config.method} can rank but not retrieve')
    if self._find is None:
      self._find = self._evaluator.finder(self._state)
    return self._find(batch)

  def retrieve(
      self, users: Sequence[Any] | None = None,
      histories: Sequence[Sequence[Any] | None] | None = None,
  ) -> tuple[types.Beams, np.ndarray | None]:
    """Retrieves for users or histories, ordered by both paths.

    Args:
      users: B original user ids; unknown ones are cold.
      histories: B lists of original item ids, oldest first, or None entries.

    Returns:
      (beams [B, W] in final order with retrieval scores, ranking logits
      [B, W] or None). `dataset.item_ids[beams.item]` are the original ids.

    Raises:
      types.InputError: if the method cannot retrieve.
    """
    batch = self.dataset.requests(users, histories)
    beams = self.search(batch)
    if not self._evaluator.can_score:
      return beams, None
    batch = self.dataset.with_candidates(
        batch, None, beams.item, mask=beams.mask.astype(np.float32))
    ranking = self.score(batch)
    # Before its end a run has chosen none: then in retrieval's own order.
    place = unified.order(beams, ranking, self.alpha or 0.)
    return lists.permute(beams, place), np.take_along_axis(ranking, place, 1)

  def recommend(self, source: str, target: str) -> int:
    """Answers a file of requests; see `data.requests` for the formats.

    Args:
      source: path of the requests.
      target: path of the answers, one row a request: item ids, retrieval
        scores and ranking scores in final order.

    Returns:
      The number of requests.

    Raises:
      types.InputError: bad files, or a method that cannot retrieve.
    """
    users, histories = requests.read(source)
    titles = self.dataset.titles
    answers = {'user_id': users, 'item_id': [], 'title': [],
               'retrieval_score': [], 'ranking_score': []}
    size = self.config.eval.users_per_batch
    for start in range(0, len(users), size):
      part = slice(start, start + size)
      beams, ranking = self.retrieve(users[part], histories[part])
      for row, mask in enumerate(beams.mask):
        item = beams.item[row][mask]
        answers['item_id'].append(self.dataset.item_ids[item].tolist())
        answers['title'].append(None if titles is None
                                else titles[item].tolist())
        answers['retrieval_score'].append(beams.score[row][mask].tolist())
        answers['ranking_score'].append(
            [] if ranking is None else ranking[row][mask].tolist())
    if titles is None:
      del answers['title']
    requests.write(target, answers)
    return len(users)

  def export(self, workdir: str) -> None:
    """Writes codes.npz again.

    Raises:
      types.InputError: if the method has no codes.
    """
    if self.codes is None:
      raise types.InputError(
          f'--mode=export: {self.config.method} has no semantic IDs')
    write_codes(workdir, self.dataset, self.codes)


def write_codes(workdir: str, dataset: dataset_lib.Dataset,
                codes: np.ndarray) -> None:
  """Writes codes.npz: `item_id` [V] and `codes` [V, L] int32.

  Args:
    workdir: where to.
    dataset: whose items table gives the order of the rows.
    codes: [V, L] of the items by their numbers.

  Raises:
    types.InputError: if it cannot be written.
  """
  order = dataset.file_order
  files.write(os.path.join(workdir, 'codes.npz'), files.npz(
      item_id=dataset.item_ids[order], codes=codes[order].astype(np.int32)))


def load(workdir: str, config: ml_collections.ConfigDict | None = None,
         data_dir: str | None = None) -> Loaded:
  """Opens a run: what it chose at its end, or its best state so far.

  Args:
    workdir: of `sidrec.main`; of several seeds, the first.
    config: overrides what the run was evaluated with (`eval`, `parallel`);
      None takes the run's own configuration.
    data_dir: folder of the run's data, where it is no longer where it was.

  Returns:
    The run: codes, config, metrics, and ready `retrieve` and `score`.

  Raises:
    types.InputError: no finished run there, one of another configuration or
      of other data, or a damaged file.
  """
  path = os.path.join(workdir, 'config.json')
  config, own = _config(path, config), config is None
  if data_dir is not None:
    config.data.dir = data_dir
  seed, folder = config.seed, workdir
  if config.num_seeds > 1:
    folder = os.path.join(workdir, f'seed_{seed}')
  try:
    dataset = data.load(config.data, config.data.seed)
  except types.InputError as error:
    if not own or data_dir is not None:
      raise
    raise types.InputError(
        f'{path}: the data of the run cannot be read ({error}): say where '
        'they are by --config.data.dir=DIR or evaluate.load(workdir, '
        'data_dir=DIR)') from error
  mapped = parallel.make(config.parallel.wrapper)
  method = methods.get(config.method).make(config, dataset)
  shapes = jax.eval_shape(
      functools.partial(base.init_state, method), np.uint32(seed),
      dataset.catalog)
  state = _restore(os.path.join(folder, 'checkpoints'), config, dataset,
                   {**run_identity.identity(config, dataset), 'seed': seed},
                   shapes)
  results = files.read_json(os.path.join(workdir, 'results.json')) or {}
  evaluator = evaluator_lib.Evaluator(
      method, dataset, mapped, config.eval)
  return Loaded(config, dataset, evaluator, mapped.place(state), results)


def _config(path: str, config: ml_collections.ConfigDict | None
            ) -> ml_collections.ConfigDict:
  """Returns the configuration to open a run with, checked."""
  saved = files.read_json(path)
  if saved is None:
    raise types.InputError(f'{path}: no such file; train first')
  own = config is None
  if own:
    config = run_identity.complete(saved, path)
  try:
    settings.check(config)
    config_lib.identity(config)
  except types.InputError as error:
    if own:
      raise types.InputError(
          f'{path}: {error}; if it is of another version, train again'
      ) from error
    raise
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise types.InputError(
        f'{path}: of another version of sidrec, which had other keys '
        f'({str(error).splitlines()[0]}): train again') from error
  return config


def _restore(directory: str, config: ml_collections.ConfigDict,
             dataset: dataset_lib.Dataset, identity: dict[str, Any],
             shapes: types.TrainState) -> types.TrainState:
  """Returns the state to serve, on the host."""
  if not epath.Path(directory).is_dir():
    raise types.InputError(f'{directory}: no checkpoint; train first')
  for last in (False, False, True):
    with checkpoint.Checkpointer(
        directory, read_only=True, best_metric='monitor', among='section',
        config=identity, complete=lambda saved: run_identity.complete_identity(
            saved, config, dataset)) as saver:
      try:
        step = saver.chosen_step(shapes)
        if step is not None:
          return saver.restore(step, shapes)[0]
      except types.InputError:
        # A run that trains may have put a newer one in its place.
        if last or all(epath.Path(directory, str(x)).exists()
                       for x in saver.steps()):
          raise
  raise types.InputError(f'{directory}: no checkpoint; train first')
