"""Residual quantization of an encoder's output: the core of RQ-VAE variants.

SoundStream's residual quantizer (arXiv 2107.03312) as TIGER (arXiv 2305.05065)
brought it to items, and as LC-Rec and LETTER train it: an MLP encoder and
decoder, one codebook a level, learned by gradient, started by k-means.

    r_1 = z = E(x);  c_l = argmin_k |r_l - e_lk|^2;  q_l = e_l[c_l]
    zhat = sum_l q_l;  xhat = D(z + sg(zhat - z))

How gradients pass a level (`next_residual`) decides who learns:
  code_family: r - (r + sg(q - r)), as published code has it: the residual of
    levels 2 and up is a constant, so their commitment moves nothing.
  paper: r - q: commitment of a level moves the encoder and earlier codewords.
  sg: r - sg(q): commitment moves the encoder alone, on every level.
The codewords of a level learn from its codebook loss in all three.

Reductions: 'mean' over dimensions and levels (LC-Rec, LETTER), or 'sum' (RQ-VAE
ports in the manner of VQ-VAE). Weights do not transfer from one to the other.
"""

from typing import Any, NamedTuple, Sequence

import chex
import jax
import jax.numpy as jnp

from sidrec import losses
from sidrec import rng
from sidrec import types
from sidrec.tokenizers import base
from sidrec.tokenizers import distances
from sidrec.tokenizers import sinkhorn

MODES = ('code_family', 'paper', 'sg')
REDUCTIONS = ('mean', 'sum')


class Settings(NamedTuple):
  """Checked settings that all trained variants share, see `settings`."""
  num_items: int
  hidden: tuple[int, ...]
  latent_dim: int
  num_levels: int
  codebook_size: int
  commitment: float
  next_residual: str
  reduction: str
  sinkhorn_epsilon: float
  sinkhorn_steps: int
  start_rows: int
  kmeans_steps: int
  revive: bool


def settings(config: Any, spec: types.DataSpec) -> Settings:
  """Reads and checks the settings of a trained residual quantizer.

  Args:
    config: with num_levels (L), codebook_size (K), hidden (widths between D
      and the latent width; the decoder mirrors them), latent_dim (d),
      commitment (beta), next_residual (one of `MODES`), reduction (one of
      `REDUCTIONS`), sinkhorn_epsilon (0 = nearest codes on the last level as
      well; .003 in published code), sinkhorn_steps, start_rows (items that the
      k-means start looks at; 0 = all), kmeans_steps and revive (whether
      codewords without an item move between epochs).
    spec: of the data set; only the number of items is read.

  Raises:
    types.InputError: a setting out of range, or V > K ** L.
  """
  base.check_capacity(config, spec)
  base.check_choice(config, 'next_residual', MODES)
  base.check_choice(config, 'reduction', REDUCTIONS)
  for name, low in (('latent_dim', 1), ('commitment', 0),
                    ('sinkhorn_epsilon', 0), ('sinkhorn_steps', 1),
                    ('start_rows', 0), ('kmeans_steps', 1)):
    base.check_range(config, name, low)
  if any(width < 1 for width in config.hidden):
    raise types.InputError(
        f'tokenizer.hidden: {tuple(config.hidden)} has a width below 1.')
  if 0 < config.start_rows < config.codebook_size:
    raise types.InputError(
        f'tokenizer.start_rows: {config.start_rows} items cannot start '
        f'{config.codebook_size} codewords; raise it, or 0 for all items.')
  return Settings(
      num_items=spec.num_items, hidden=tuple(config.hidden),
      **{name: config[name] for name in Settings._fields[2:]})


def init_mlp(key: jax.Array, widths: Sequence[int]) -> types.PyTree:
  """Draws Linear layers: Xavier-normal kernels, biases of zero.

  Args:
    key: PRNG key (consumed).
    widths: of the input and of each layer's output.

  Returns:
    {'layer_i': {'kernel': [in, out], 'bias': [out]}}.
  """
  draw = jax.nn.initializers.glorot_normal()
  return {
      f'layer_{i}': {
          'kernel': draw(rng.stream(key, 'layer', i), shape, jnp.float32),
          'bias': jnp.zeros((shape[1],), jnp.float32)}
      for i, shape in enumerate(zip(widths[:-1], widths[1:]))}


def mlp(params: types.PyTree, x: types.Array) -> types.Array:
  """Applies layers with ReLU between them: [B, in] -> [B, out].

  Stays in NumPy where all arrays are NumPy's.
  """
  for i in range(len(params)):
    layer = params[f'layer_{i}']
    x = x @ layer['kernel'] + layer['bias'][None]
    if i + 1 < len(params):
      x = x.clip(min=0)
  return x


def init(
    s: Settings, key: jax.Array, sample: jax.Array
) -> tuple[types.PyTree, types.PyTree]:
  """Random layers and codewords, placeholder codes, see `base.InitFn`.

  params: 'encoder' and 'decoder' (see `init_mlp`), 'books' [L, K, d].
  codebook: 'codes' [V, L] int32.
  """
  chex.assert_rank(sample, 2)
  widths = (sample.shape[1], *s.hidden, s.latent_dim)
  encoder = init_mlp(rng.stream(key, 'encoder'), widths)
  latent = mlp(encoder, jnp.asarray(sample, jnp.float32))
  params = {
      'encoder': encoder,
      'decoder': init_mlp(rng.stream(key, 'decoder'), widths[::-1]),
      'books': jnp.std(latent) * jax.random.normal(
          rng.stream(key, 'books'),
          (s.num_levels, s.codebook_size, s.latent_dim)),
  }
  return params, {'codes': jnp.asarray(
      base.counting_codes(s.num_items, s.num_levels, s.codebook_size))}


def next_residual(
    mode: str, residual: jax.Array, word: jax.Array) -> jax.Array:
  """Subtracts a codeword, [B, d] both; gradients as the mode says."""
  sg = jax.lax.stop_gradient
  if mode == 'code_family':
    return residual - (residual + sg(word - residual))
  return residual - (word if mode == 'paper' else sg(word))


def quantize(
    s: Settings, books: jax.Array, latent: jax.Array,
    codes: jax.Array | None = None, *, balanced: bool = False,
    axis_name: str | None = None
) -> types.TokenizerOutput:
  """Quantizes latents level by level.

  Args:
    s: settings.
    books: [L, K, d].
    latent: [B, d] encoder output z.
    codes: [B, L] int32 to read instead of choosing; None = choose.
    balanced: whether chosen codes of the last level go by Sinkhorn over the
      batch (`sinkhorn.assign`); nearest otherwise.
    axis_name: data-parallel axis that the batch spans.

  Returns:
    `quantized` are prefix sums of codewords, straight through: their gradient
    is the latent's, and none reaches the codewords. `logits` are negative
    squared distances. aux: 'latent'.
  """
  sg = jax.lax.stop_gradient
  residual, total, levels = latent, jnp.zeros_like(latent), []
  for level in range(s.num_levels):
    dist = distances.squared(residual, books[level])
    if codes is not None:
      code = codes[:, level]
    elif balanced and level + 1 == s.num_levels:
      code = sinkhorn.assign(
          dist, epsilon=s.sinkhorn_epsilon, num_steps=s.sinkhorn_steps,
          axis_name=axis_name)
    else:
      code = jnp.argmin(dist, -1).astype(jnp.int32)
    word = books[level][code]
    total = total + sg(word)
    levels.append((code, total + (latent - sg(latent)), residual, -dist))
    residual = next_residual(s.next_residual, residual, word)
  code, quantized, residuals, logits = (
      jnp.stack(leaf, 1) for leaf in zip(*levels))
  return types.TokenizerOutput(
      codes=code, quantized=quantized, residuals=residuals, logits=logits,
      aux={'latent': latent})


def encode(
    s: Settings, params: types.PyTree, codebook: types.PyTree, x: jax.Array,
    *, key: jax.Array | None = None, item: jax.Array | None = None,
    noise: jax.Array | float = 0., live: jax.Array | float = 1.,
    train: bool = False, axis_name: str | None = None
) -> types.TokenizerOutput:
  """Encodes and quantizes, see `base.EncodeFn` and `quantize`.

  Codes are the stored ones where `item` is given, outside of training; chosen
  ones else. There is no noise to draw.
  """
  del key, noise, live
  chex.assert_rank(x, 2)
  latent = mlp(params['encoder'], jnp.asarray(x, jnp.float32))
  stored = None if train or item is None else codebook['codes'][item]
  return quantize(
      s, params['books'], latent, stored, axis_name=axis_name,
      balanced=train and s.sinkhorn_epsilon > 0)


def decode(params: types.PyTree, output: types.TokenizerOutput) -> jax.Array:
  """Decodes the whole sum of codewords: [B, D], straight through."""
  return mlp(params['decoder'], output.quantized[:, -1])


def words(params: types.PyTree, codes: jax.Array) -> jax.Array:
  """Gathers codewords, with gradient to the books: [B, l] -> [B, l, d]."""
  return jnp.stack([
      params['books'][level][codes[:, level]]
      for level in range(codes.shape[1])], 1)


def _over(reduction: str, value: jax.Array, axes: tuple[int, ...]
          ) -> jax.Array:
  return (jnp.mean if reduction == 'mean' else jnp.sum)(value, axes)


def reconstruction_loss(
    s: Settings, params: types.PyTree, x: jax.Array,
    output: types.TokenizerOutput
) -> jax.Array:
  """Returns squared errors [B] of xhat, reduced over D by `s.reduction`."""
  return _over(s.reduction, jnp.square(decode(params, output) - x), (1,))


def quantization_loss(
    s: Settings, params: types.PyTree, output: types.TokenizerOutput
) -> tuple[jax.Array, types.Metrics]:
  """Computes codebook and commitment loss of all levels.

  Args:
    s: settings.
    params: with 'books'.
    output: of `quantize`.

  Returns:
    ([B] red_l (|sg(r_l) - q_l|^2 + beta |r_l - sg(q_l)|^2), reduced over
    dimensions and levels by `s.reduction`; metrics [B] each: 'commitment' (the
    plain mean of |r_l - q_l|^2) and, for each level, 'residual@l' (the length
    of what is left after it)).
  """
  sg = jax.lax.stop_gradient
  word = words(params, output.codes)
  residual = output.residuals
  book = jnp.square(sg(residual) - word)
  commit = jnp.square(residual - sg(word))
  per_example = _over(s.reduction, book + s.commitment * commit, (1, 2))
  left = jnp.linalg.norm(sg(residual - word), axis=-1)
  metrics = {'commitment': losses.commitment(
      sg(residual).reshape(len(word), -1), word.reshape(len(word), -1))}
  for level in range(s.num_levels):
    metrics[f'residual@{level + 1}'] = left[:, level]
  return per_example, sg(metrics)


def prefix(params: types.PyTree, codes: types.Array) -> types.Array:
  """Sums the codewords of a prefix: [..., l] int32 -> [..., d]."""
  return sum(params['books'][level][codes[..., level]]
             for level in range(codes.shape[-1]))
