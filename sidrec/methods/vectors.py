"""Where the vectors come from that a tokenizer reads.

`content` are those of the catalog, made when the data are read. Learned ones
are trained first, in the same run, and kept in `variables['vectors']`.
"""

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from sidrec import schedule
from sidrec import types
from sidrec.config import ranges
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base
from sidrec.methods import next_item
from sidrec.models import item_model

_NAME = 'vectors'  # Of a source's variable, parameters and program.


class Source(NamedTuple):
  """A source of item vectors.

  dim: D of the vectors.
  part: what is to be trained for them.
  sections: that train it, and put the vectors into the variables.
  """
  dim: int
  part: base.Part
  sections: tuple[schedule.Section, ...] = ()


def build(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
          ) -> Source:
  """Builds the source `config.vectors.name`.

  Raises:
    types.InputError: the catalog says nothing of its items.
  """
  return SOURCES[config.vectors.name](config.vectors, dataset)


def of(state: types.TrainState, catalog: types.Catalog) -> jax.Array:
  """Returns the vectors [V, D] float32 that the tokenizer reads now."""
  return state.variables.get(_NAME, catalog.vectors)


def content(settings: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
            ) -> Source:
  """Takes the catalog's own vectors, standardized a dimension."""
  del settings
  if not dataset.spec.vector_dim:
    raise types.InputError(
        'items: no embeddings and no static fields, so there is nothing to '
        'make codes of; add item_embeddings.npy or columns to the items '
        'table, or set config.vectors.name=sasrec')
  return Source(
      dataset.spec.vector_dim, base.Part(lambda key, catalog: ({}, {})))


def sasrec(settings: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
           ) -> Source:
  """Trains a SASRec (arXiv 1808.09781) and takes its item table.

  Args:
    settings: `model` (see `item_model.make`), `train` (a stage, see
      `next_item.part`) and `standardize`: whether each dimension is brought to
      mean 0 and deviation 1, as auto-encoders need.
    dataset: what it learns from.
  """
  num_items, dim = dataset.spec.num_items, settings.model.dim
  model = item_model.make(settings.model, num_items, 'vectors.model')
  part, train = train_items(_NAME, model, settings.train, dataset)

  def init(key: jax.Array, catalog: types.Catalog):
    params, variables = part.init(key, catalog)
    return params, {**variables, _NAME: jnp.zeros((num_items, dim))}

  def keep(bench: base.Bench, state: types.TrainState) -> base.Changes:
    table = bench.host(model.table(state.params[_NAME]))
    return base.Changes(variables={
        _NAME: standardized(table) if settings.standardize else table})

  return Source(dim, part._replace(init=init), (schedule.Section(
      _NAME, (*train, schedule.Host('vectors', keep))),))


SOURCES: dict[str, Callable[..., Source]] = {
    'content': content, 'sasrec': sasrec}
RANGES: ranges.Table = {'name': ranges.choice_of({
    'content': {},
    'sasrec': {'vectors': {
        'standardize': ranges.FLAG, 'model': item_model.RANGES,
        'train': next_item.STAGE}}})}


def train_items(
    name: str, model: item_model.ItemModel, train: ml_collections.ConfigDict,
    dataset: dataset_lib.Dataset
) -> tuple[base.Part, tuple[schedule.Train, ...]]:
  """Returns an item model's part, and the items of a schedule that train it.

  Args:
    name: of the part.
    model: the pure functions.
    train: a stage, see `next_item.part`.
    dataset: what it learns from.
  """
  steps = next_item.num_steps(train, dataset, f'{name}.train')
  return (next_item.part(name, model, train, steps),
          (schedule.Train(name, steps),))


def standardized(vectors: np.ndarray) -> np.ndarray:
  """Returns [V, D] float32 of mean 0 and deviation 1 a dimension."""
  mean, scale = vectors.mean(0), vectors.std(0)
  return ((vectors - mean) / np.where(scale > 1e-12, scale, 1.)).astype(
      np.float32)
