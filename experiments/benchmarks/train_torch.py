"""PyTorch modules of the shapes that train.py measures, and Cornac's.

Same layers, same sizes, same batches, AdamW with the gradients clipped to norm
1; what PyTorch has of its own is used: scaled_dot_product_attention, the fused
optimizer, autocast where the activations are bfloat16.
"""

import itertools
import math
from typing import Any, Callable

import numpy as np
from sidrec.models import t5 as t5_lib
from sidrec.tokenizers import kmeans
import torch
from torch import nn
from torch.nn import functional


DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'


class Rqvae(nn.Module):
  """Encoder, three residual codebooks, decoder; the loss of TIGER's eq. 1."""

  def __init__(self, dim: int, hidden: tuple[int, ...], latent: int,
               levels: int, codes: int):
    super().__init__()
    widths = (dim, *hidden, latent)
    self.encoder = _mlp(widths)
    self.decoder = _mlp(widths[::-1])
    self.books = nn.Parameter(torch.randn(levels, codes, latent))

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns the loss [] of vectors [B, D]."""
    latent = left = self.encoder(x)
    total, own = torch.zeros_like(latent), 0.
    for book in self.books:
      with torch.no_grad():
        code = torch.argmin(
            (book * book).sum(1)[None] - 2 * left @ book.T, 1)
      word = book[code]
      own = own + functional.mse_loss(word, left.detach())
      own = own + .25 * functional.mse_loss(left, word.detach())
      total = total + word.detach()
      left = left - word.detach()
    out = self.decoder(latent + (total - latent).detach())
    return functional.mse_loss(out, x) + own / len(self.books)


def _mlp(widths: tuple[int, ...]) -> nn.Sequential:
  layers = []
  for a, b in itertools.pairwise(widths):
    layers += [nn.Linear(a, b), nn.ReLU()]
  return nn.Sequential(*layers[:-1])


class Attention(nn.Module):
  """Pre-norm attention without biases, not scaled unless told."""

  def __init__(self, model: Any, scale: float = 1.):
    super().__init__()
    self.heads, self.scale = model.num_heads, scale
    inner = model.num_heads * model.head_dim
    self.norm = nn.RMSNorm(model.dim, eps=1e-6)
    self.query = nn.Linear(model.dim, inner, bias=False)
    self.memory = nn.Linear(model.dim, 2 * inner, bias=False)
    self.out = nn.Linear(inner, model.dim, bias=False)
    nn.init.normal_(
        self.query.weight, std=(model.dim * model.head_dim) ** -.5)

  def forward(self, x: torch.Tensor, bias: torch.Tensor,
              memory: torch.Tensor | None = None,
              rotate: Callable[[torch.Tensor], torch.Tensor] | None = None
              ) -> torch.Tensor:
    """Returns [B, Q, D] of x [B, Q, D]; memory [B, N, D], None = x itself."""
    x = self.norm(x)
    split = lambda y: y.unflatten(-1, (self.heads, -1)).transpose(1, 2)
    query = split(self.query(x))
    keys, values = map(split, self.memory(
        x if memory is None else memory).chunk(2, -1))
    if rotate is not None:
      query, keys = rotate(query), rotate(keys)
    read = functional.scaled_dot_product_attention(
        query, keys, values, bias.to(query.dtype), scale=self.scale)
    return self.out(read.transpose(1, 2).flatten(2))


class Feed(nn.Module):
  """Pre-norm ReLU feed-forward without biases."""

  def __init__(self, dim: int, hidden: int):
    super().__init__()
    self.norm = nn.RMSNorm(dim, eps=1e-6)
    self.up = nn.Linear(dim, hidden, bias=False)
    self.down = nn.Linear(hidden, dim, bias=False)

  def forward(self, x: torch.Tensor) -> torch.Tensor:
    """Returns [..., D] of x [..., D]."""
    return self.down(functional.relu(self.up(self.norm(x))))


class Codes(nn.Module):
  """Embedding rows and an output of its own for each level."""

  def __init__(self, sizes: tuple[int, ...], dim: int):
    super().__init__()
    self.rows = nn.Embedding(sum(sizes), dim)
    self.heads = nn.ModuleList(nn.Linear(dim, k, bias=False) for k in sizes)
    self.register_buffer('first', torch.tensor(
        [0, *itertools.accumulate(sizes)][:-1]))

  def forward(self, codes: torch.Tensor) -> torch.Tensor:
    """Embeds codes [..., n] of the first n levels as [..., n, D]."""
    return self.rows(codes + self.first[:codes.shape[-1]])


class T5(nn.Module):
  """The encoder-decoder of `sidrec.models.t5`."""

  def __init__(self, model: Any, sizes: tuple[int, ...]):
    super().__init__()
    layers = range(model.num_layers)
    self.codes = Codes(sizes, model.dim)
    self.num_users = model.num_user_tokens
    self.user = nn.Embedding(max(self.num_users, 1), model.dim)
    self.begin = nn.Parameter(torch.randn(1, 1, model.dim))
    self.encoder = nn.ModuleList(nn.ModuleList(
        [Attention(model), Feed(model.dim, model.hidden)]) for _ in layers)
    self.decoder = nn.ModuleList(nn.ModuleList(
        [Attention(model), Attention(model), Feed(model.dim, model.hidden)])
                                 for _ in layers)
    self.biases = nn.ModuleList(
        nn.Embedding(32, model.num_heads) for _ in range(2))
    self.norms = nn.ModuleList(nn.RMSNorm(model.dim) for _ in range(2))
    self.drop = nn.Dropout(model.dropout)

  def _bias(self, stack: int, length: int) -> torch.Tensor:
    place = np.arange(length)
    rows = t5_lib.bucket(place[None] - place[:, None], not stack)
    table = self.biases[stack](torch.tensor(rows, device=self.begin.device))
    return table.permute(2, 0, 1)[None]

  def forward(self, history: torch.Tensor, target: torch.Tensor,
              user: torch.Tensor) -> torch.Tensor:
    """Returns the loss [] of histories [B, H, T] and targets [B, T]."""
    x = self.codes(history).flatten(1, 2)
    if self.num_users:
      x = torch.cat([self.user(user % self.num_users)[:, None], x], 1)
    valid = torch.ones(x.shape[:2], device=x.device)
    far = torch.where(valid > 0, 0., -1e9)[:, None, None]
    x, bias = self.drop(x), self._bias(0, x.shape[1]) + far
    for read, feed in self.encoder:
      x = x + self.drop(read(x, bias))
      x = x + self.drop(feed(x))
    memory = self.drop(self.norms[0](x))
    x = torch.cat([self.begin.expand(len(target), -1, -1),
                   self.codes(target[:, :-1])], 1)
    length = x.shape[1]
    later = torch.ones((length, length), device=x.device).triu(1)
    x, bias = self.drop(x), self._bias(1, length) - 1e9 * later
    for own, cross, feed in self.decoder:
      x = x + self.drop(own(x, bias))
      x = x + self.drop(cross(x, far, memory))
      x = x + self.drop(feed(x))
    x = self.drop(self.norms[1](x))
    return sum(functional.cross_entropy(head(x[:, level]), target[:, level])
               for level, head in enumerate(self.codes.heads)) / length


class Decoder(nn.Module):
  """The causal generator of `sidrec.models.decoder`: an item is one position.

  Codes before level l of the next item are added to what was read, and a
  feed-forward block of that level's own writes the code.
  """

  def __init__(self, model: Any, sizes: tuple[int, ...]):
    super().__init__()
    feed = lambda: Feed(model.dim, model.hidden)
    self.codes = Codes(sizes, model.dim)
    self.prefix = nn.Embedding(sum(sizes), model.dim)
    self.level = nn.Parameter(
        torch.randn(len(sizes), model.dim) * model.dim ** -.5)
    self.blocks = nn.ModuleList(nn.ModuleList(
        [Attention(model, model.head_dim ** -.5), feed()])
                                for _ in range(model.num_layers))
    self.depth = nn.ModuleList(feed() for _ in sizes)
    self.norms = nn.ModuleList(nn.RMSNorm(model.dim) for _ in range(2))
    self.drop = nn.Dropout(model.dropout)
    self.half = model.head_dim // 2

  def forward(self, codes: torch.Tensor, segment: torch.Tensor,
              target: torch.Tensor) -> torch.Tensor:
    """Returns the loss [] of packed codes [B, S, T]; segment, target [B, S]."""
    length = codes.shape[1]
    rate = 1e4 ** (-torch.arange(self.half, device=codes.device) / self.half)
    angle = torch.arange(length, device=codes.device)[:, None] * rate
    cos, sin = angle.cos(), angle.sin()

    def rotate(x: torch.Tensor) -> torch.Tensor:
      a, b = x.chunk(2, -1)
      return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).to(x.dtype)

    same = (segment[:, :, None] == segment[:, None]).tril()
    bias = torch.where(same, 0., -1e9)[:, None]
    x = self.drop(self.codes(codes).sum(2))
    for read, feed in self.blocks:
      x = x + self.drop(read(x, bias, rotate=rotate))
      x = x + self.drop(feed(x))
    known = functional.pad(self.norms[0](x)[:, :-1], (0, 0, 1, 0))
    wrote = self.prefix(codes[..., :-1] + self.codes.first[:-1])
    loss = 0.
    for level, (feed, head) in enumerate(zip(self.depth, self.codes.heads)):
      if level:
        known = known + wrote[:, :, level - 1]
      x = known + self.level[level]
      logits = head(self.norms[1](x + feed(x)))
      loss = loss + functional.cross_entropy(
          logits.flatten(0, 1), codes[:, :, level].flatten(), reduction='none')
    weight = target.flatten() / len(self.depth)
    return (loss * weight).sum() / target.sum()


def lloyd(data: dict[str, Any], codes: int) -> np.ndarray:
  """Fits residual k-means from sidrec's start; returns codes [V, L].

  Args:
    data: vectors [V, D], rounds of each level, seed.
    codes: K.
  """
  left = torch.tensor(data['vectors'], device=DEVICE)
  found = []

  def nearest(centers: torch.Tensor) -> torch.Tensor:
    half = (centers * centers).sum(1) / 2
    return torch.cat([torch.argmax(rows @ centers.T - half, 1)
                      for rows in left.split(kmeans.CHUNK)])

  for level, rounds in enumerate(data['rounds']):
    centers = torch.tensor(kmeans.start_centers(
        data['seed'] + level, left.cpu().numpy(), codes), device=DEVICE)
    for _ in range(rounds):
      label = nearest(centers)
      count = torch.bincount(label, minlength=codes)[:, None]
      total = torch.zeros_like(centers).index_add_(0, label, left)
      centers = torch.where(count > 0, total / count.clamp(min=1), centers)
    label = nearest(centers)
    left -= centers[label]
    found.append(label.cpu().numpy())
  return np.stack(found, 1)


def step(module: nn.Module, config: Any, batches: list[tuple[Any, ...]],
         dtype: str, plain: bool = False) -> Callable[[], float]:
  """Returns the call of one training step.

  Args:
    module: returns the loss of a batch.
    config: the sub-tree with learning_rate and weight_decay.
    batches: arguments of the module, taken in turns.
    dtype: 'bfloat16': autocast.
    plain: the optimizer as the other library calls it, without clipping.
  """
  module = module.to(DEVICE).train()
  params = list(module.parameters())
  optimizer = torch.optim.AdamW(
      params, config.learning_rate, weight_decay=config.weight_decay,
      **({} if plain else dict(fused=True)))
  turns = itertools.cycle(batches)

  def call() -> float:
    optimizer.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16, dtype == 'bfloat16'):
      loss = module(*next(turns))
    loss = loss if loss.ndim == 0 else loss.sum()
    loss.backward()
    if not plain:
      nn.utils.clip_grad_norm_(params, 1.)
    optimizer.step()
    return loss.item()  # Waits for the device.

  return call


def contestants(case: Any, cornac: bool, compiled: bool, dtype: str
                ) -> list[tuple[str, Callable[[], Any], float]]:
  """Returns (name, call, share of the case's amounts a call) of each rival.

  Args:
    case: of train_cases.
    cornac: whether Cornac's modules take part where they fit.
    compiled: whether torch.compile does too.
    dtype: of the generators' activations.
  """
  torch.manual_seed(0)
  config, data = case.config, case.data
  found, own = [], None
  if case.name == 'rqkmeans':
    return [('torch', lambda: lloyd(data, config.tokenizer.codebook_size), 1.)]
  if case.name == 'rqvae':
    t, dtype = config.tokenizer, 'float32'
    own = lambda: Rqvae(data['vectors'].shape[1], t.hidden, t.latent_dim,
                        t.num_levels, t.codebook_size)
    vectors = torch.tensor(data['vectors'])
    batches = [(vectors[item].to(DEVICE),) for item in data['items']]
  elif case.name in ('t5', 't5_beauty', 'decoder'):
    kind = Decoder if case.name == 'decoder' else T5
    own = lambda: kind(config.generator, case.sizes)
    names = (('history', 'target', 'user') if kind is T5
             else ('codes', 'segment', 'target'))
    batches = [tuple(_tensor(batch[name]) for name in names)
               for batch in data['batches']]
  settings = (config.tokenizer_train if case.name == 'rqvae'
              else config.train)
  share = data.get('share', 1.)
  if own is not None:
    found.append(('torch', step(own(), settings, batches, dtype), share))
    if compiled:
      found.append(('torch compiled', step(
          torch.compile(own()), settings, batches, dtype), share))
  if cornac:
    import train_cornac  # pylint: disable=g-import-not-at-top
    found += train_cornac.contestants(case, DEVICE, step, dtype)
  return found


def _tensor(x: np.ndarray) -> torch.Tensor:
  x = torch.tensor(x, device=DEVICE)
  return x if x.is_floating_point() else x.long()
