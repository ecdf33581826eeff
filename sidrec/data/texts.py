"""Encodes items' texts where a catalog brings no vectors of its own."""

import hashlib
import os

from absl import logging
import numpy as np

from sidrec import types
from sidrec.data import tables as tables_lib

_CACHE = '~/.cache/sidrec/texts'


def of_items(tables: tables_lib.Tables) -> list[str]:
  """Returns one text an item: its text columns, in order, with full stops.

  Args:
    tables: after `tables.check`.

  Raises:
    types.InputError: the items have no text column.
  """
  columns = [
      name for name, column in tables.info['columns']['items'].items()
      if column['type'] in ('text', 'text_list')
      and column['role'] != types.Role.NEVER.value]
  if not columns:
    raise types.InputError(
        'config.data.text_encoder: the items table has no text column, such '
        'as title; declare its type in dataset.json')
  def words(value) -> str:
    if value is None:
      return ''
    many = [value] if isinstance(value, str) else value
    return ' '.join(str(x) for x in many if x is not None)
  return ['. '.join(filter(None, parts)) for parts in zip(*(
      [words(value) for value in tables.items[name]] for name in columns))]


def encode(texts: list[str], encoder: str) -> np.ndarray:
  """Encodes texts [V] by a sentence encoder; each encoding is kept on disk.

  Args:
    texts: of the items.
    encoder: what `sentence_transformers.SentenceTransformer` opens: a name or
      a folder.

  Returns:
    [V, E] float16.

  Raises:
    types.InputError: the package is not installed, or it cannot open the
      encoder.
  """
  digest = hashlib.sha256('\0'.join([encoder, *texts]).encode()).hexdigest()
  path = os.path.join(os.path.expanduser(_CACHE), f'{digest[:32]}.npy')
  if os.path.isfile(path):
    return np.load(path)
  try:
    import sentence_transformers  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise types.InputError(
        f'config.data.text_encoder={encoder}: pip install '
        'sentence-transformers, or put item_embeddings.npy beside the tables'
    ) from error
  try:
    model = sentence_transformers.SentenceTransformer(encoder)
  except Exception as error:
    raise types.InputError(
        f'config.data.text_encoder={encoder}: cannot be opened '
        f'({str(error).splitlines()[0]})') from error
  logging.info('encoding the texts of %d items with %s', len(texts), encoder)
  vectors = np.asarray(model.encode(
      texts, batch_size=128, show_progress_bar=True), np.float16)
  os.makedirs(os.path.dirname(path), exist_ok=True)
  # Under a name of its own first: a killed write leaves nothing half done.
  partial = f'{path}.{os.getpid()}.npy'
  np.save(partial, vectors)
  os.replace(partial, path)
  return vectors
