"""What lies in a directory of checkpoints, for those who cannot open it."""

import json

from etils import epath
import jax

TEMPORARY = '.orbax-checkpoint-tmp'


def undecoded(directory: str) -> epath.Path | str:
  """Returns the newest checkpoint whose small files hold no JSON objects, else all."""
  for step in sorted(
      (p for p in epath.Path(directory).iterdir() if p.name.isdigit()),
      key=lambda p: -int(p.name)):
    for name in ('_CHECKPOINT_METADATA', 'metrics/metrics'):
      try:
        if not isinstance(json.loads((step / name).read_bytes()), dict):
          return step
      except ValueError:
        return step
      except OSError:
        pass
  return directory


def remove_unfinished(directory: str) -> None:
  """Removes saves that were cut off.

  Orbax's own clean-up overlooks a folder killed before its marker was written.
  """
  root = epath.Path(directory)
  if jax.process_index() == 0 and root.exists():
    for path in root.glob(f'*{TEMPORARY}*'):
      path.rmtree()
