"""Data: three tables in, point-in-time batches out."""

import dataclasses
import os

from absl import logging
import ml_collections

from sidrec import types
from sidrec.data import encode as _encode
from sidrec.data import tables as _tables
from sidrec.data import texts as _texts
from sidrec.data.dataset import Dataset
from sidrec.data.pipeline import Pipeline
from sidrec.data.tables import Tables

__all__ = ['Dataset', 'Pipeline', 'Tables', 'build', 'find', 'load', 'read']

PLANTED = 'planted'
DEFAULT_ROOT = '~/sidrec_data'


def load(config: ml_collections.ConfigDict, seed: int) -> Dataset:
  """Reads, checks and encodes a data set, or generates the planted one.

  Args:
    config: `config.data`: `dir` is a folder of tables and wins; else `name`
      is `planted` or a folder in `root`, by default $SIDREC_DATA or
      ~/sidrec_data.
    seed: of item numbers, evaluation negatives and the planted world.

  Raises:
    types.InputError: bad input, in one line.
  """
  where, tables = read(config, seed)
  if tables.inferred:
    logging.info('%s: inferred: %s', where, '; '.join(tables.inferred))
  return build(tables, config, seed, where)


def read(config: ml_collections.ConfigDict, seed: int) -> tuple[str, Tables]:
  """Reads and checks tables; returns (where they are from, tables).

  Arguments and errors as of `load`.
  """
  if not config.dir and config.name == PLANTED:
    from sidrec.data import planted  # pylint: disable=g-import-not-at-top
    where, tables = PLANTED, planted.generate(config.planted, seed)
  else:
    where = find(config)
    tables = _tables.read(where)
  return where, _tables.check(tables, where)


def build(tables: Tables, config: ml_collections.ConfigDict, seed: int,
          where: str) -> Dataset:
  """Encodes checked tables; arguments and errors as of `load`."""
  if config.text_encoder and tables.embeddings is None:
    tables = dataclasses.replace(tables, embeddings=_texts.encode(
        _texts.of_items(tables), config.text_encoder))
  return _encode.build(tables, config, seed, where)


def find(config: ml_collections.ConfigDict) -> str:
  """Returns the folder that `config.data` means.

  Raises:
    types.InputError: if there is none.
  """
  if config.dir:
    directory = os.path.expanduser(config.dir)
    if os.path.isdir(directory):
      return directory
    raise types.InputError(
        f'config.data.dir: no folder {directory}; point it at the folder of '
        'events and items')
  root = os.path.expanduser(
      config.root or os.environ.get('SIDREC_DATA') or DEFAULT_ROOT)
  directory = os.path.join(root, config.name)
  if config.name and os.path.isdir(directory):
    return directory
  raise types.InputError(
      f'config.data.name: no folder {config.name!r} in {root}; set '
      'config.data.root or $SIDREC_DATA to where the data sets are, or '
      'config.data.dir to the folder itself')
