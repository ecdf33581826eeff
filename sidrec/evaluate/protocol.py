"""Says under what rules, and with what, the numbers of a run came about."""

import configparser
from importlib import metadata
import pathlib
import platform
import subprocess
from typing import Any

import ml_collections

from sidrec import types
from sidrec.data import dataset as dataset_lib
from sidrec.methods import base

_PACKAGE = pathlib.Path(types.__file__).resolve().parent
_SECONDS = 20  # That git may take.


def describe_run(
    config: ml_collections.ConfigDict, dataset: dataset_lib.Dataset,
    method: base.Method) -> dict[str, Any]:
  """Returns what results.json says beside the numbers.

  Args:
    config: the whole configuration.
    dataset: what it was run on.
    method: what was run.

  Returns:
    'protocol': text, parted by `; `: what the data set says (split, history
    and its length), whether seen items are kept, how items of one score
    count, and of methods with codes what becomes of items of one code;
    'remove_seen': bool; 'versions': of sidrec (with the git commit of a
    checkout), jax, jaxlib, flax, numpy and python; 'data': its name and a
    fingerprint of what was read.
  """
  removed = bool(config.eval.remove_seen)
  words = [dataset.protocol,
           f'seen items {"removed" if removed else "kept"}',
           'items of one score count as the mean over their orders']
  if method.sizes:
    words.append(f'items of one code: {_collisions(config)}')
  return {
      'protocol': '; '.join(words), 'remove_seen': removed,
      'versions': versions(),
      'data': {'name': dataset.name, 'fingerprint': dataset.fingerprint}}


def _collisions(config: ml_collections.ConfigDict) -> str:
  """Returns the rule for items that a tokenizer gives one code."""
  if 'codes' in config:
    return config.codes.collisions
  return 'as the tokenizer leaves them'


def versions() -> dict[str, str]:
  """Returns the versions of what a run depends on."""
  found = {'sidrec': _own_version()}
  for name in ('jax', 'jaxlib', 'flax', 'numpy'):
    found[name] = metadata.version(name)
  return {**found, 'python': platform.python_version()}


def _own_version() -> str:
  """Returns the package's version and, in a checkout, `+COMMIT[.dirty]`."""
  settings = configparser.ConfigParser()
  settings.read(_PACKAGE.parent / 'setup.cfg')
  version = settings.get('metadata', 'version', fallback='')
  # The file beside the package, for an installed one may be another.
  if settings.get('metadata', 'name', fallback='') != 'sidrec' or not version:
    try:
      version = metadata.version('sidrec')
    except metadata.PackageNotFoundError:
      version = 'unknown'
  # Not the commit of a repository that the package only lies in.
  if _git('ls-files', '--error-unmatch', 'types.py') is None:
    return version
  commit = _git('rev-parse', '--short=12', 'HEAD')
  if not commit:
    return version
  changed = _git('status', '--porcelain', '--untracked-files=no', '.')
  return f'{version}+{commit}{".dirty" if changed else ""}'


def _git(*arguments: str) -> str | None:
  """Returns what git prints in the package's folder; None where it fails."""
  try:
    done = subprocess.run(
        ['git', *arguments], cwd=_PACKAGE, capture_output=True, text=True,
        timeout=_SECONDS, check=False)
  except (OSError, subprocess.SubprocessError):
    return None
  return done.stdout.strip() if done.returncode == 0 else None
