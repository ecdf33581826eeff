"""What each method will read of a data set, in words.

An experiment declares it (`READS`, words of `config.READS`); here the words
become the numbers and names of one data set. Nothing is known of methods.
"""

from typing import Mapping, NamedTuple

import ml_collections

from sidrec import config as config_lib
from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.data import schema
from sidrec.data import splits
from sidrec.data import tables as tables_lib

_TEXTS = ('text', 'text_list')
_MOST_SLOTS = 8  # A field with more holds words of a text, not categories.
_CUT = 'move the cut (split in dataset.json, or config.data.split)'


class Experiment(NamedTuple):
  """What is known of an experiment.

  words: behind the colon, of the run that is expected.
  reads: its `READS`.
  config: with the words.
  """
  words: str
  reads: tuple[str, ...]
  config: ml_collections.ConfigDict


def load(name: str) -> Experiment:
  """Returns an experiment as it is run on one device.

  One that writes codes is that with the word `decoder`, the generator that
  needs no accelerator.

  Args:
    name: of the experiment.

  Raises:
    types.InputError: see `config.load_experiment`, `config.load_reads`.
  """
  config, words = config_lib.load_experiment(name), ''
  if 'generator' in config:
    words = 'decoder'
    config = config_lib.load_experiment(name, words)
  return Experiment(words, config_lib.load_reads(name), config)


def text(experiment: Experiment, tables: tables_lib.Tables,
         dataset: dataset_lib.Dataset) -> str:
  """Returns what a method reads, in words.

  Args:
    experiment: of the method.
    tables: after `tables.check`.
    dataset: encoded of them.
  """
  say = {
      'popularity': lambda: 'counts of the training split',
      'ids': lambda: 'item ids',
      'content': lambda: _content(tables, dataset.spec),
      'described': lambda: 'nothing of items but numbers',
      'collaborative': lambda: 'vectors of an item model of the training split',
      'taxonomy': lambda: _taxonomy(experiment, dataset.spec.items),
      'columns': lambda: _columns(dataset.spec.items, 'item'),
      'requests': lambda: _columns(dataset.spec.request, 'request'),
      'cross': lambda: 'u2i of ' + (', '.join(tables.info['cross']) or 'none'),
      'exposures': lambda: _exposures(experiment, dataset.spec),
      'sequences': lambda: _sequences(experiment, dataset.spec)}
  words = [word for word in experiment.reads if word != 'described'
           or 'taxonomy' not in experiment.reads]
  return ', '.join(say[word]() for word in words)


def levels(spec: types.FeatureSpec) -> list[types.Field]:
  """Returns category columns that can be levels, of fewest categories first."""
  found = [field for field in spec.fields if field.kind == 'category'
           and field.stop - field.start <= _MOST_SLOTS and field.size > 1]
  # A field with several categories has a column for each of them.
  found = [field for field in found for _ in range(field.start, field.stop)]
  return sorted(found, key=lambda field: field.size)


def check(experiment: Experiment, dataset: dataset_lib.Dataset) -> None:
  """Refuses what a method cannot run on.

  Args:
    experiment: of the method.
    dataset: to run on.

  Raises:
    types.InputError: why, and what to do.
  """
  config = experiment.config
  if {'content', 'described'} & set(experiment.reads) and (
      not dataset.spec.vector_dim):
    raise types.InputError(
        'no embeddings and no columns of items; add item_embeddings.npy or '
        'columns, or set config.vectors.name=sasrec')
  if 'taxonomy' in experiment.reads:
    found, wanted = len(levels(dataset.spec.items)), _num_fields(experiment)
    if found < wanted:
      raise types.InputError(
          f'{found} of {wanted} category columns of items; add or declare them '
          '(type category)')
  watched = {name.partition('/')[0] for name in config.eval.monitor}
  if 'retrieval' in watched:
    for name in splits.NAMES[1:]:
      if not len(dataset.examples(name, 'targets')):
        raise types.InputError(f'the {name} split has no positive; {_CUT}')
  if 'exposures' in experiment.reads and dataset.has_negatives:
    for place, name in enumerate(splits.NAMES[:2]):
      label = dataset.event_label[dataset.event_split == place]
      if label.min() == label.max():
        raise types.InputError(
            f'the {name} split has labels of one class; {_CUT}')


def grouped(texts: Mapping[str, str]) -> list[tuple[str, str]]:
  """Returns (names, text) of methods that read the same, in their order."""
  names: dict[str, list[str]] = {}
  for name, own in texts.items():
    names.setdefault(own, []).append(name)
  return [(', '.join(group), own) for own, group in names.items()]


def _content(tables: tables_lib.Tables, spec: types.DataSpec) -> str:
  """Says what content vectors are made of."""
  if tables.embeddings is not None:
    return f'{spec.vector_dim}-d embedding of items'
  kinds = {name: column['type']
           for name, column in tables.info['columns']['items'].items()
           if column['role'] != types.Role.NEVER.value}
  texts = [name for name, kind in kinds.items() if kind in _TEXTS]
  rest = len(kinds) - len(texts)
  out = [f'{schema.listed(texts)} as hashed words'] * bool(texts)
  out += [f'{rest} item column{"s" * (rest != 1)} projected at random'] * bool(
      rest)
  return (' and '.join(out) + f' ({spec.vector_dim}-d)'
          + ': set data.text_encoder' * bool(texts)) if out else 'no content'


def _num_fields(experiment: Experiment) -> int:
  """Returns how many columns the levels of a taxonomy are."""
  return experiment.config.tokenizer.num_levels - 1


def _taxonomy(experiment: Experiment, spec: types.FeatureSpec) -> str:
  """Names the columns that become levels."""
  chosen = levels(spec)[:_num_fields(experiment)]
  return ', '.join(f'{field.name} ({field.size:,})'
                   for field in chosen) or 'no category column of items'


def _columns(spec: types.FeatureSpec, kind: str) -> str:
  """Counts columns, and names vectors."""
  columns = [field for field in spec.fields if field.kind != 'vector']
  out = [f'{len(columns)} {kind} column' + 's' * (len(columns) != 1)]
  out += [f'{field.name} ({field.size}-d)' for field in spec.fields
          if field.kind == 'vector']
  return ' + '.join(out)


def _exposures(experiment: Experiment, spec: types.DataSpec) -> str:
  """Says what is ranked against what."""
  if spec.has_negatives:
    return 'labels of exposures'
  return (f'{experiment.config.train.rank_negatives} drawn items against each '
          'positive')


def _sequences(experiment: Experiment, spec: types.DataSpec) -> str:
  """Says what histories are made of."""
  config = experiment.config.data
  kind = config.history
  if kind == 'auto':
    kind = 'all' if spec.has_negatives else 'positive'
  return (f'{config.history_length} newest '
          f'{"exposures" if kind == "all" else "positives"}')
