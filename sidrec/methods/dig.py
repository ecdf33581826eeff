"""DIG: a semantic-ID tokenizer trained inside a ranker (arXiv 2605.14853).

One phase, one loss, one step. Both paths share the history attention and the
mixer; the retrieval path reads the semantic embedding of a token prefix where
the ranking path reads the item, and a bucket mean of u2i (or MLP_u2t's guess)
where the ranking path reads u2i itself.
"""

import functools
from typing import Mapping, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import distill
from sidrec import losses
from sidrec import rng
from sidrec import tokenizers
from sidrec import types
from sidrec.methods import base
from sidrec.methods import dig_serving
from sidrec.models import layers
from sidrec.models import ranker


class Now(NamedTuple):
  """Where in the run a step is; traced scalars.

  joint: 1 once the warm-up (ranking loss only) is over.
  live: 1 until the codes are frozen.
  sigma: scale of the Gumbel noise, a cosine to 0.
  p_mix: chance that MLP_u2t's guess stands in for the bucket mean.
  """
  joint: jax.Array
  live: jax.Array
  sigma: jax.Array
  p_mix: jax.Array


class Forward(NamedTuple):
  """One training pass; R ranking rows, N retrieval rows.

  y_rank: [B, C] logits of the ranking path.
  y_found: [B', C', L] logits of the retrieval path.
  output: the tokenizer's, of all R + N rows.
  vectors: [R + N, D] e_v.
  cross: [N, X] u2i of the retrieval rows in standard units.
  guess, u2t: [N, L, X] MLP_u2t's guess of it and its bucket means.
  """
  y_rank: jax.Array
  y_found: jax.Array
  output: types.TokenizerOutput
  vectors: jax.Array
  cross: jax.Array
  guess: jax.Array
  u2t: jax.Array


def make(
    config: ml_collections.ConfigDict, data: types.DataSpec, num_steps: int
) -> base.Method:
  """Builds DIG.

  Args:
    config: the whole configuration.
    data: static facts of the data set.
    num_steps: steps of the run.

  Returns:
    The method.

  Raises:
    types.InputError: if the code space is too small for the catalog.
  """
  settings = config.tokenizer.copy_and_resolve_references()
  if settings.num_levels < 1:
    raise types.InputError(
        f'config.tokenizer.num_levels={settings.num_levels}: must be at least 1')
  if not settings.codebook_size:
    settings.codebook_size = default_size(data.num_items, settings.num_levels)
  _check(config)
  dig = dig_serving.Dig(
      config, data, tokenizers.get(settings.name).make(settings, data),
      num_steps, int(num_steps * config.loss.warmup),
      int(num_steps * config.loss.freeze))
  every = config.loss.reassign_every or max(num_steps // 8, 1)
  hooks = (
      base.Hook('tree', lambda step: step == dig.warmup,
                functools.partial(grow_tree, dig)),
      base.Hook('reassign', lambda step: (
          dig.warmup < step <= dig.freeze
          and (step - dig.warmup) % every == 0),
                functools.partial(reassign, dig)))
  live = lambda step: config.loss.address_scale * (step < dig.freeze)
  phase = base.Phase(
      'joint', num_steps, base.ranking_streams(config, data, True),
      base.make_optimizer(
          config.train, num_steps,
          {'address': live, 'leaf_id': config.loss.leaf_scale}, ranker.TABLES),
      functools.partial(loss_fn, dig), hooks=hooks, select_from=dig.warmup)
  return base.Method(
      init=functools.partial(init, dig), phases=(phase,),
      score=functools.partial(dig_serving.score, dig),
      token_score=functools.partial(dig_serving.token_score, dig),
      retrieve=functools.partial(dig_serving.retrieve, dig),
      codes=lambda state: dig.tokenizer.codes(state.codebook),
      codebook_sizes=dig.tokenizer.codebook_sizes)


def default_size(num_items: int, num_levels: int) -> int:
  """Returns the multiple of 4 whose K ** L is at least three times V.

  Args:
    num_items: V.
    num_levels: L.
  """
  size = 4
  while size ** num_levels < 3 * num_items:
    size += 4
  return size


def _check(config: ml_collections.ConfigDict) -> None:
  """Refuses settings that no arm would read as they are meant."""
  for key, allowed in (
      ('leaf', ('item', 'tokens')), ('rank_item', ('both', 'e_v')),
      ('u2t_target', ('own', 'bucket'))):
    if config.loss[key] not in allowed:
      raise types.InputError(
          f'config.loss.{key}={config.loss[key]}: one of {", ".join(allowed)}')
  for key in ('retrieval_negatives', 'retrieval_batch_size'):
    if config.train[key] < 1:
      raise types.InputError(
          f'config.train.{key}={config.train[key]}: must be at least 1')
  if config.train.retrieval_seen_negatives < 0:
    raise types.InputError(
        'config.train.retrieval_seen_negatives='
        f'{config.train.retrieval_seen_negatives}: must be at least 0')
  for key in ('warmup', 'freeze'):
    if not 0 <= config.loss[key] <= 1:
      raise types.InputError(
          f'config.loss.{key}={config.loss[key]}: must be in [0, 1]')


def init(dig: dig_serving.Dig, key: jax.Array, catalog: types.Catalog
         ) -> tuple[types.PyTree, types.PyTree, types.PyTree]:
  """Returns fresh (params, codebook, batch_stats); consumes `key`."""
  params, batch_stats = ranker.init(
      rng.stream(key, 'tower'), ranker.make(dig.config.model, dig.data),
      catalog, dig.tokenizer.num_levels * dig.data.num_actions
      if dig.config.loss.match else 0)
  sample = jnp.zeros((dig.data.num_items, dig.config.model.dim), jnp.float32)
  codes, codebook = dig.tokenizer.init(rng.stream(key, 'tokenizer'), sample)
  return {'tower': params, 'tokenizer': codes}, codebook, batch_stats


def schedule(dig: dig_serving.Dig, step: jax.Array) -> Now:
  """Returns the schedules at a step (specification section 5)."""
  c = dig.config.loss
  progress = (step - dig.warmup) / max(dig.num_steps - dig.warmup, 1)
  noisy = jnp.clip(progress / max(c.sigma_until, 1e-6), 0., 1.)
  joint = (step >= dig.warmup).astype(jnp.float32)
  return Now(
      joint=joint, live=(step < dig.freeze).astype(jnp.float32),
      sigma=c.sigma * .5 * (1. + jnp.cos(jnp.pi * noisy)) * (noisy < 1.)
      * joint,
      p_mix=c.p_mix * jnp.clip(progress / max(c.p_mix_ramp, 1e-6), 0., 1.))


def _forward(model: ranker.Ranker, dig: dig_serving.Dig,
             catalog: types.Catalog, batches: Mapping[str, types.Batch],
             params: types.PyTree, codebook: types.PyTree, now: Now,
             key: jax.Array, axis_name: str | None) -> Forward:
  rank, found = batches['rank'], batches['retrieval']
  item = jnp.concatenate([rank.item.reshape(-1), found.item.reshape(-1)])
  x, rank_history, found_history = model.vectors(
      catalog, [item, rank.history, found.history])
  # Codebook noise is keyed by item, not by device: replicas must agree.
  output = dig.tokenizer.encode(
      params, codebook, x, key=rng.stream(key, 'codes'), item=item,
      noise=now.sigma, live=now.live)
  cut, (b, c) = rank.item.size, found.item.shape
  semantic = output.quantized[cut:]                              # [N, L, D]
  if dig.config.loss.leaf == 'item':
    leaf = model.leaves(x[cut:], item[cut:])
    semantic = jnp.concatenate([semantic[:, :-1], leaf[:, None]], 1)
    found_history = model.leaves(found_history, found.history)
  levels, dim = semantic.shape[1:]
  query = semantic.reshape(b, c * levels, dim)
  rank_match, found_match = _match(dig, codebook, output.codes, batches, now)
  rank_h = model.attend(
      model.users(rank, rank_history), x[:cut].reshape(*rank.item.shape, dim),
      rank_match)
  found_h = model.attend(
      model.users(found, found_history), query, found_match)
  guess = model.u2t(
      jax.lax.stop_gradient(found_h) if dig.config.loss.stop_h else found_h,
      jax.lax.stop_gradient(query))
  guess = guess.reshape(b * c, levels, guess.shape[-1])
  flat = layers.flat
  cross = model.normalize(
      'cross', jnp.concatenate([flat(rank.cross), flat(found.cross)]), True)
  u2t = distill.bucket_mean(
      cross[cut:], output.codes[cut:], found.mask.reshape(-1), axis_name)
  rows = (found.row[:, None] * c + jnp.arange(c)[None]).reshape(-1)
  stand_in = distill.mix(
      rng.per_row(rng.stream(key, 'mix'), rows), u2t, guess, now.p_mix)
  h = jnp.concatenate([
      model.normalize('user', flat(rank_h), True),
      model.normalize('found', flat(found_h), True)])
  left = jnp.concatenate([
      dig_serving.item_slot(
          dig, model, x[:cut], output.quantized[:cut, -1], True),
      model.normalize('sid', flat(semantic), True)])
  right = jnp.concatenate([
      model.normalize('u2i', cross[:cut], True),
      model.normalize('u2t', flat(stand_in), True)])
  logits = model.mix(h, left, right)
  return Forward(
      logits[:cut].reshape(rank.item.shape), logits[cut:].reshape(b, c, levels),
      output, x, cross[cut:], guess, u2t)


def _match(dig: dig_serving.Dig, codebook: types.PyTree, codes: jax.Array,
           batches: Mapping[str, types.Batch], now: Now
           ) -> tuple[jax.Array | None, jax.Array | None]:
  """Matches of both paths' queries: [B, C, M] and [B', C' L, M], or None."""
  if not dig.config.loss.match:
    return None, None
  rank, found = batches['rank'], batches['retrieval']
  sid = dig.tokenizer.codes(codebook)
  # In the warm-up codes are placeholders, and match by chance.
  of_rank = now.joint * dig_serving.matches(dig, sid, rank, sid[rank.item])
  full = now.joint * dig_serving.matches(
      dig, sid, found, codes[rank.item.size:].reshape(*found.item.shape, -1))
  b, c, levels, actions = full.shape
  # A query of level l knows the matches of its own prefix only.
  known = jnp.tril(jnp.ones((levels, levels)))[None, None, :, :, None]
  spread = (full[:, :, None] * known).reshape(b, c * levels, levels * actions)
  return dig_serving.flat_matches(of_rank), spread


def loss_fn(dig: dig_serving.Dig, params: types.PyTree,
            state: types.TrainState, catalog: types.Catalog,
            batches: Mapping[str, types.Batch], *, key: jax.Array,
            axis_name: str | None
            ) -> tuple[jax.Array, base.LossOutput]:
  """DIG's five losses (specification section 4).

  loss = rank * L_rank + recall * L_recall + code * (L_commit, L_book)
         + recon * L_recon + u2t * L_u2t

  Args:
    dig: the shared parts.
    params: differentiated.
    state: the rest of the state; `state.step` drives the schedules.
    catalog: item features.
    batches: 'rank' [B, C] exposures and 'retrieval' [B', 1 + negatives].
    key: of this step, the same on all devices.
    axis_name: data-parallel axis or None.

  Returns:
    (local share of the global mean loss, LossOutput).
  """
  now = schedule(dig, state.step)
  model = ranker.make(dig.config.model, dig.data, axis_name)
  out, updated = model.apply(
      {'params': params['tower'], 'batch_stats': state.batch_stats},
      dig, catalog, batches, params['tokenizer'], state.codebook, now, key,
      axis_name, method=_forward, mutable=['batch_stats'])
  terms, extra = _terms(dig, out, params, state, batches, axis_name)
  c = dig.config.loss
  loss = c.rank * terms['rank'] + now.joint * (
      c.recall * terms['recall'] + c.code * now.live * terms['code']
      + c.recon * terms['recon'] + c.u2t * terms['u2t'])
  metrics = {'loss': loss, **{f'loss/{k}': v for k, v in terms.items()},
             **{f'tokenizer/{k}': v for k, v in extra.items()}}
  if axis_name is not None:
    metrics = jax.lax.psum(metrics, axis_name)
  metrics['schedule/sigma'] = now.sigma
  label = batches['retrieval'].label.reshape(-1)
  traffic = jnp.concatenate(
      [jnp.zeros(out.vectors.shape[0] - label.shape[0]), label])
  codebook = dig.tokenizer.update(
      state.codebook, out.output, mask=traffic, axis_name=axis_name)
  moving = now.joint * now.live > 0
  codebook = jax.tree.map(
      lambda new, old: jnp.where(moving, new, old), codebook, state.codebook)
  return loss, base.LossOutput(metrics, codebook, updated['batch_stats'])


def _terms(dig: dig_serving.Dig, out: Forward, params: types.PyTree,
           state: types.TrainState, batches: Mapping[str, types.Batch],
           axis_name: str | None
           ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
  rank, found = batches['rank'], batches['retrieval']
  mean = lambda value, mask: losses.reduce(value, mask, axis_name)
  cut = rank.item.size
  found_mask = found.mask.reshape(-1)
  every = jnp.concatenate([rank.mask.reshape(-1), found_mask])
  codes = out.output.codes[cut:].reshape(*found.item.shape, -1)
  keep = distill.prefix_negative_mask(codes, found.label)
  keep = keep * found.mask[..., None]
  y_found, seen = out.y_found, dig.config.train.retrieval_seen_negatives
  if seen:
    # Whole items alone: what share of a prefix was seen is not at hand.
    offset = distill.seen_offset(
        found.history, found.history_mask, found.item, dig.data.num_items,
        dig.config.train.retrieval_negatives, seen)
    y_found = y_found.at[..., -1].add(-offset)
    keep = keep.at[:, -seen:, :-1].set(0.)
  labels = jnp.broadcast_to(found.label[..., None], y_found.shape)
  teacher = out.u2t
  if dig.config.loss.u2t_target == 'own':
    teacher = jnp.broadcast_to(out.cross[:, None], out.guess.shape)
  per_code, extra = dig.tokenizer.loss(
      params['tokenizer'], state.codebook, out.vectors, out.output)
  per_recon = losses.mse_per_example(
      out.output.quantized[:, -1], jax.lax.stop_gradient(out.vectors))
  per_u2t = distill.u2t_loss(out.guess, jax.lax.stop_gradient(teacher))
  terms = {
      'rank': base.rank_loss(dig.config, out.y_rank, rank, axis_name),
      'recall': mean(losses.sigmoid_bce(y_found, labels), keep),
      'code': mean(per_code, every),
      'recon': mean(per_recon, every),
      'u2t': mean(jnp.mean(per_u2t, -1), found_mask),
  }
  return terms, {k: mean(v, every) for k, v in extra.items()}


def _all_vectors(dig: dig_serving.Dig, state: types.TrainState,
                 catalog: types.Catalog) -> jax.Array:
  item = jnp.arange(dig.data.num_items)
  return dig_serving.serve(
      dig, state, lambda m: m.items(catalog.features, item))


def grow_tree(dig: dig_serving.Dig, state: types.TrainState,
              catalog: types.Catalog, seed: int
              ) -> tuple[types.TrainState, types.Metrics]:
  """Host hook: balanced k-means tree over e_v, after the warm-up."""
  params, codebook = dig.tokenizer.fit(
      seed, state.params['tokenizer'], state.codebook,
      jax.device_get(_all_vectors(dig, state, catalog)))
  # What the optimizer remembers of the placeholder tables is of no use.
  fresh = lambda path, x: x * 0 if {'address', 'semantic'} & {
      getattr(k, 'key', None) for k in path} else x
  return state.replace(
      params={**state.params, 'tokenizer': params}, codebook=codebook,
      opt_state=jax.tree_util.tree_map_with_path(fresh, state.opt_state)), {}


def reassign(dig: dig_serving.Dig, state: types.TrainState,
             catalog: types.Catalog, seed: int
             ) -> tuple[types.TrainState, types.Metrics]:
  """Host hook: capacity-limited reassignment of the stored codes."""
  del seed
  codebook, metrics = dig.tokenizer.refresh(
      state.params['tokenizer'], state.codebook,
      jax.device_get(_all_vectors(dig, state, catalog)))
  return state.replace(codebook=codebook), metrics
