"""A world and a model so small that a whole run takes seconds."""

import functools
import json
import pathlib
import types
from typing import Any

import ml_collections

from sidrec import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent

_DATA = {
    'data.planted.num_users': 80, 'data.planted.num_items': 60,
    'data.planted.events_per_user': 12., 'data.planted.num_brands': 6,
    'data.planted.num_top_categories': 3,
    'data.planted.leaves_per_category': 2, 'data.history_length': 5,
    'data.seen_length': 9,
    'eval.beam_size': 8, 'eval.batch_size': 64, 'eval.users_per_batch': 16,
    'eval.valid_users': 20,
}
_TRAIN = {
    'train.num_steps': 12, 'train.batch_size': 32, 'train.warmup': 2,
    'eval.every': 4, 'run.log_every': 3,
}
_TOWER = {
    'model.dim': 8, 'model.id_dim': 4, 'model.field_dim': 4,
    'model.hidden': 8, 'model.attention': 4, 'model.cross_layers': 1,
    'model.cross_rank': 2, 'model.experts': 2, 'model.expert_width': 4,
}
_DIG = {
    'train.retrieval_batch_size': 16, 'train.retrieval_negatives': 2,
    'tokenizer.codebook_size': 4, 'tokenizer.num_levels': 3,
    'loss.reassign_every': 3,
}
_SASREC = {
    'train.row_items': 8, 'model.dim': 8, 'model.num_layers': 1,
    'model.num_heads': 2,
}
_CODES = {
    'generator.dim': 8, 'generator.num_layers': 1, 'generator.num_heads': 2,
    'generator.head_dim': 4, 'generator.hidden': 8,
    'tokenizer.num_levels': 2, 'tokenizer.codebook_size': 8,
    'codes.suffix_size': 60,
}
_TRAINED = {
    'tokenizer_train.length': '3 steps', 'tokenizer_train.batch_size': 32,
}
_COLLABORATIVE = {
    'collaborative.train.length': '2 steps',
    'collaborative.train.batch_size': 8, 'collaborative.train.row_items': 8,
    'tokenizer.num_clusters': 2,
}


def overrides(method: str, words: str = '') -> dict[str, Any]:
  """Returns the dotted keys that make a method's experiment tiny.

  Args:
    method: name of the experiment.
    words: behind the colon.
  """
  if method == 'popularity':
    return _DATA
  keys = {**_DATA, **_TRAIN}
  if method in ('dig', 'ranker'):
    return {**keys, **_TOWER, **(_DIG if method == 'dig' else {})}
  if method == 'sasrec':
    return {**keys, **_SASREC}
  keys.update(_CODES)
  if method in ('tiger', 'cost', 'letter'):
    keys.update(_TRAINED)
  if method == 'letter':
    keys.update(_COLLABORATIVE)
  if method == 'category_codes':
    keys['tokenizer.codebook_size'] = 64
  if 'decoder' in words:
    keys['train.row_items'] = 8
  return keys


def experiment(method: str) -> Any:
  """Returns what has the `get_config` of `experiments/<method>.py`."""
  return types.SimpleNamespace(
      get_config=functools.partial(config_lib.load_experiment, method))


def config(method: str = 'dig', words: str = '', **more: Any
           ) -> ml_collections.ConfigDict:
  """Returns a tiny configuration.

  Args:
    method: name of the experiment.
    words: behind the colon, such as 'decoder'.
    **more: further keys, `__` for the dot.
  """
  out = config_lib.load_experiment(method, words)
  config_lib.set_keys(out, overrides(method, words))
  config_lib.set_keys(
      out, {k.replace('__', '.'): v for k, v in more.items()})
  return out


def arguments(method: str, workdir: Any, **more: Any) -> list[str]:
  """Returns the same as arguments of `python -m sidrec.main`."""
  changes = {k.replace('__', '.'): v for k, v in more.items()}
  return [f'--config={ROOT}/experiments/{method}.py', f'--workdir={workdir}',
          *(f'--config.{key}={value}'
            for key, value in {**overrides(method), **changes}.items())]


def lines(workdir: Any) -> list[dict[str, Any]]:
  """Reads metrics.jsonl without what depends on the clock."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [_timeless(json.loads(line)) for line in text.splitlines()]


def results(workdir: Any) -> dict[str, Any]:
  """Reads results.json without what depends on the clock."""
  out = json.loads((pathlib.Path(workdir) / 'results.json').read_text())
  for name in ('wall_seconds', 'versions'):  # A commit may come in between.
    out.pop(name)
  return {**out, 'metrics': {
      split: _timeless(values) for split, values in out['metrics'].items()}}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in values.items() if not k.startswith('speed/')}
