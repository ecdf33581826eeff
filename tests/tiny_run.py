"""A world and a model so small that a whole run takes seconds."""

import importlib.util
import json
import pathlib
from typing import Any

import ml_collections

from sidrec import config as config_lib

ROOT = pathlib.Path(__file__).resolve().parent.parent

_DATA = {
    'data.planted.num_users': 80, 'data.planted.num_items': 60,
    'data.planted.events_per_user': 12., 'data.planted.num_brands': 6,
    'data.planted.num_top_categories': 3,
    'data.planted.leaves_per_category': 2, 'data.history_length': 5,
    'eval.beam_size': 8, 'eval.batch_size': 64, 'eval.users_per_batch': 16,
    'eval.valid_users': 20,
}
_TRAIN = {
    'train.num_steps': 12, 'train.eval_every': 4, 'train.log_every': 3,
    'train.batch_size': 32, 'train.warmup_steps': 2,
    'model.dim': 8, 'model.id_dim': 4, 'model.field_dim': 4,
    'model.hidden': 8, 'model.attention': 4, 'model.cross_layers': 1,
    'model.cross_rank': 2, 'model.experts': 2, 'model.expert_width': 4,
}
_DIG = {
    'train.retrieval_batch_size': 16, 'train.retrieval_negatives': 2,
    'tokenizer.codebook_size': 4, 'tokenizer.num_levels': 3,
    'loss.reassign_every': 3,
}
_SEQUENCES = {
    'train.row_items': 8, 'model.dim': 8, 'model.num_layers': 1,
    'model.num_heads': 2,
}
_CODES = {
    'model.head_dim': 4, 'model.hidden': 8, 'tokenizer.num_levels': 2,
    'tokenizer.codebook_size': 8, 'tokenizer.suffix_size': 60,
    'tokenizer_train.num_steps': 3, 'tokenizer_train.batch_size': 32,
}
_COLLABORATIVE = {
    'collaborative.num_steps': 2, 'collaborative.batch_size': 8,
    'collaborative.row_items': 8, 'tokenizer.num_clusters': 2,
}


def overrides(method: str) -> dict[str, Any]:
  """Returns the dotted keys that make a method's experiment tiny."""
  if method == 'popularity':
    return _DATA
  keys = {**_DATA, **{k: v for k, v in _TRAIN.items() if 'model' not in k}}
  if method in ('dig', 'ranker'):
    return {**keys, **_TRAIN, **(_DIG if method == 'dig' else {})}
  keys.update(_SEQUENCES)
  if method == 'sasrec':
    return keys
  keys.update(_CODES)
  if method == 'category_codes':
    keys['tokenizer.codebook_size'] = 64
  return {**keys, **(_COLLABORATIVE if method == 'letter' else {})}


def experiment(method: str) -> Any:
  """Imports `experiments/<method>.py`, which is in no package."""
  path = ROOT / 'experiments' / f'{method}.py'
  spec = importlib.util.spec_from_file_location(f'experiment_{method}', path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def config(method: str = 'dig', **more: Any) -> ml_collections.ConfigDict:
  """Returns a tiny configuration.

  Args:
    method: name of the experiment.
    **more: further keys, `__` for the dot.
  """
  out = experiment(method).get_config()
  changes = {k.replace('__', '.'): v for k, v in more.items()}
  for key, value in {**overrides(method), **changes}.items():
    config_lib.set_key(out, key, value)
  return out


def arguments(method: str, workdir: Any, **more: Any) -> list[str]:
  """Returns the same as arguments of `python -m sidrec.main`."""
  changes = {k.replace('__', '.'): v for k, v in more.items()}
  words = {**overrides(method), **changes}
  return [f'--config={ROOT}/experiments/{method}.py', f'--workdir={workdir}',
          *(f'--config.{key}={value}' for key, value in words.items())]


def lines(workdir: Any) -> list[dict[str, Any]]:
  """Reads metrics.jsonl without what depends on the clock."""
  text = (pathlib.Path(workdir) / 'metrics.jsonl').read_text()
  return [_timeless(json.loads(line)) for line in text.splitlines()]


def results(workdir: Any) -> dict[str, Any]:
  """Reads results.json without what depends on the clock."""
  out = json.loads((pathlib.Path(workdir) / 'results.json').read_text())
  out.pop('wall_seconds')
  return {**out, 'metrics': {
      split: _timeless(values) for split, values in out['metrics'].items()}}


def _timeless(values: dict[str, Any]) -> dict[str, Any]:
  return {k: v for k, v in values.items() if not k.startswith('speed/')}
