"""Hashes of what is saved, arrays leaf by leaf and JSON, and what differs."""

import hashlib
import json
from typing import Any, Mapping
import zlib

import jax
import numpy as np

Leaf = Mapping[str, Any]  # dtype: str. shape: list of int. crc32: int or None.


def of_tree(tree: Any, with_crc: bool = True) -> dict[str, Leaf]:
  """Returns the name of each leaf -> its dtype, shape and hash.

  A CRC finds every single changed bit and every change within 32 bits; it
  costs two to three seconds for a gigabyte.

  Args:
    tree: arrays, on the host or replicated over the devices; without hashes
      also `jax.ShapeDtypeStruct`s.
    with_crc: whether to read the arrays.
  """
  return {
      jax.tree_util.keystr(path): {
          'dtype': str(leaf.dtype), 'shape': list(np.shape(leaf)),
          'crc32': _crc(leaf) if with_crc else None}
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _crc(leaf: Any) -> int:
  """CRC-32 of an array's bytes, in the order of its indices."""
  array = np.ascontiguousarray(np.asarray(leaf)).reshape(-1)
  return zlib.crc32(array.view(np.uint8))  # As bytes: bfloat16 has no buffer.


def other_leaf(there: Mapping[str, Leaf], here: Mapping[str, Leaf]
               ) -> str | None:
  """Says in what two trees differ first but for their hashes; None: nothing."""
  for name in sorted(set(there) | set(here)):
    if name not in there or name not in here:
      return f'state{name} only {"there" if name in there else "now"}'
    old, new = (f'{x["dtype"]}{x["shape"]}' for x in (there[name], here[name]))
    if old != new:
      return f'state{name} is {old} there and {new} now'
  return None


def changed_leaf(there: Mapping[str, Leaf], here: Mapping[str, Leaf]
                 ) -> str | None:
  """Returns the first leaf whose hash is another one, or None."""
  return next((f'state{name}' for name in sorted(there)
               if there[name]['crc32'] != here[name]['crc32']), None)


def fingerprint(config: Any) -> str:
  """Hash JSON values to 16 hexadecimal digits, whatever the order of keys."""
  text = json.dumps(plain(config), sort_keys=True)
  return hashlib.sha256(text.encode('utf-8')).hexdigest()[:16]


def of_record(record: Mapping[str, Any]) -> int:
  """Returns the CRC-32 of all of a JSON object but its own `crc32`."""
  text = json.dumps({k: v for k, v in record.items() if k != 'crc32'},
                    sort_keys=True)
  return zlib.crc32(text.encode('utf-8'))


def plain(value: Any) -> Any:
  """Returns the same values as JSON gives them back."""
  def convert(leaf):
    if isinstance(leaf, (np.generic, np.ndarray, jax.Array)):
      return np.asarray(leaf).tolist()
    if hasattr(leaf, 'items'):  # ConfigDict.
      return dict(leaf.items())
    raise TypeError(f'{leaf!r} of {type(leaf)} is not JSON')
  return json.loads(json.dumps(value, default=convert))


def differences(old: Any, new: Any, prefix: str = '') -> list[str]:
  """Returns lines 'key: old there, new now' for all that differs."""
  if not (isinstance(old, dict) and isinstance(new, dict)):
    return [] if old == new else [f'{prefix}: {old!r} there, {new!r} now']
  missing = object()
  lines = []
  for key in sorted(set(old) | set(new)):
    name = f'{prefix}.{key}' if prefix else key
    before, after = old.get(key, missing), new.get(key, missing)
    if before is missing or after is missing:
      lines.append(f'{name}: only {"now" if before is missing else "there"}')
    else:
      lines += differences(before, after, name)
  return lines
