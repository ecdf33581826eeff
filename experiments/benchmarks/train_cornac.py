"""Cornac's modules of TIGER for train.py, at sidrec's sizes.

Package cornac, version 3: `RQVAE` and `TIGERSeq2Seq` with AdamW called as
`TIGER.fit` calls it, and `generate_beam`, which takes one user at a time.
"""

import collections
import itertools
from typing import Any, Callable

from cornac.models.tiger import tiger
import numpy as np
import torch
from torch import nn


class _Rqvae(nn.Module):
  """Returns the loss alone."""

  def __init__(self, *args: Any, **kwargs: Any):
    super().__init__()
    self.inner = tiger.RQVAE(*args, **kwargs)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the loss [] of vectors [B, D]."""
    _, _, reconstruction, quantization = self.inner(x)
    return reconstruction + quantization


def contestants(case: Any, device: str, step: Callable[..., Any], dtype: str
                ) -> list[tuple[str, Callable[[], Any], float]]:
  """Returns what fits the case, as `train_torch.contestants` does.

  Args:
    case: of train_cases.
    device: of PyTorch.
    step: `train_torch.step`.
    dtype: of the generator's activations.
  """
  config, data = case.config, case.data
  if case.name == 'rqvae':
    t = config.tokenizer
    vectors = torch.tensor(data['vectors'])
    module = _Rqvae(vectors.shape[1], tuple(t.hidden), t.latent_dim,
                    t.num_levels, t.codebook_size)
    batches = [(vectors[item].to(device),) for item in data['items']]
    return [('cornac', step(module, config.tokenizer_train, batches,
                            'float32', plain=True), 1.)]
  if case.name not in ('t5', 't5_beauty', 't5_decode'):
    return []
  model = config.generator
  module = tiger.TIGERSeq2Seq(
      case.sizes, model.dim, model.hidden, model.num_heads, model.head_dim,
      model.num_layers, model.num_layers, model.dropout).to(device)
  offsets = module.offsets.cpu().numpy()
  encode = lambda history: torch.tensor(
      (history + offsets).reshape(len(history), -1), device=device).long()
  if case.name != 't5_decode':
    batches = []
    for batch in data['batches']:
      tokens = encode(batch['history'])
      batches.append((tokens, (tokens != 0).float(), torch.tensor(
          batch['target'], device=device).long()))
    return [('cornac', step(
        module, config.train, batches, dtype, plain=True),
             data.get('share', 1.))]
  module.eval()
  children = prefix_children(data['codes'])
  users = itertools.cycle(encode(data['history']).split(1))

  def one() -> Any:
    tokens = next(users)
    with torch.autocast(device, torch.bfloat16, dtype == 'bfloat16'):
      return module.generate_beam(
          tokens, (tokens != 0).float(), data['beam'], children)[1]

  return [('cornac', one, 1 / len(data['history']))]


def prefix_children(codes: np.ndarray
                    ) -> list[dict[tuple[int, ...], np.ndarray]]:
  """Returns the codes that may follow each prefix, a dict a level."""
  levels = [collections.defaultdict(set) for _ in codes[0]]
  for row in codes.tolist():
    for level, code in enumerate(row):
      levels[level][tuple(row[:level])].add(code)
  return [{prefix: np.fromiter(sorted(found), np.int64)
           for prefix, found in level.items()} for level in levels]
