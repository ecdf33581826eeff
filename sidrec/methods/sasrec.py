"""SASRec: self-attention over item ids, the whole catalog scored at once.

Paper: arXiv 1808.09781. The ID-based retriever that codes are compared with
(`next_item`).
"""

import functools

import ml_collections

from sidrec import config as config_lib
from sidrec import schedule
from sidrec.config import ranges
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base
from sidrec.methods import next_item
from sidrec.models import item_model

RANGES: ranges.Table = {
    'model': item_model.RANGES,
    'train': {**next_item.STAGE, **config_lib.MAIN_STAGE}}


def make(config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset
         ) -> base.Method:
  """Builds SASRec.

  Args:
    config: the whole configuration.
    dataset: what it learns from.

  Returns:
    The method: it retrieves items without codes, and does not rank exposures.
  """
  model = item_model.make(config.model, dataset.spec.num_items)
  num_steps = base.main_steps(
      config, dataset, next_item.stream(config.train))
  part = next_item.part('sasrec', model, config.train, num_steps)
  return base.Method(
      *part,
      sections=(schedule.Section(
          'sasrec', (schedule.Train('sasrec', num_steps),),
          base.watch(config, num_steps), 'best'),),
      retrieve=functools.partial(next_item.retrieve, 'sasrec', model))
