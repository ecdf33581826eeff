"""DIG's losses: one step teaches ranker, codes and MLP_u2t.

Paper: arXiv 2605.14853; sections are those of its specification.
"""

from typing import Mapping, NamedTuple

import jax
import jax.numpy as jnp

from sidrec import distill
from sidrec import losses
from sidrec import rng
from sidrec import types
from sidrec.methods import base
from sidrec.methods import dig_serving
from sidrec.methods import prefixes
from sidrec.methods import ranking
from sidrec.models import layers
from sidrec.models import ranker
from sidrec.tokenizers import base as tokenizers_base
from sidrec.tokenizers import walk


class Forward(NamedTuple):
  """One training pass; R ranking rows, N retrieval rows.

  y_rank: [B, C] logits of the ranking path.
  y_found: [B', C', L] logits of the retrieval path, and what its negatives'
    draws add to them.
  path, quantized: of the tokenizer, of all R + N rows; [R + N, L, D].
  vectors: [R + N, D] e_v.
  cross: [N, X] u2i of the retrieval rows in standard units.
  guess, u2t: [N, L, X] MLP_u2t's guess of it and its bucket means; the three
    are None where there is no u2i.
  """
  y_rank: jax.Array
  y_found: jax.Array
  offset: jax.Array
  path: walk.Path
  quantized: jax.Array
  vectors: jax.Array
  cross: jax.Array | None
  guess: jax.Array | None
  u2t: jax.Array | None


def warmup_loss(
    dig: dig_serving.Dig, params: types.PyTree, state: types.TrainState,
    catalog: types.Catalog, batches: Mapping[str, types.Batch], *,
    key: jax.Array, axis_name: str | None) -> tuple[jax.Array, base.Aux]:
  """The ranking loss alone: there are no codes yet."""
  del key
  batch = batches['rank']

  def fn(model: ranker.Ranker) -> jax.Array:
    x, history = model.vectors(catalog, [batch.item, batch.history.item])
    return dig_serving.ranking_path(
        dig, model, catalog, batch, x, history, None,
        model.normalize('cross', batch.cross, True), True)

  logits, variables = ranking.apply(
      dig.config, dig.data, params, state, fn, axis_name)
  loss = dig.config.loss.rank * ranking.loss(
      dig.config, logits, batch, axis_name)
  return loss, base.Aux({'loss': loss, 'loss/rank': loss}, variables)


def _noise(dig: dig_serving.Dig, clock: Mapping[str, jax.Array]
           ) -> tuple[jax.Array, jax.Array]:
  """Returns the schedules of a step (specification section 5).

  Returns:
    (sigma, scale of the Gumbel noise, a cosine to 0; p_mix, chance that
    MLP_u2t's guess stands in for the bucket mean), [] each.
  """
  c = dig.config.loss
  progress = (clock['joint'] + clock['frozen']) / max(
      dig.joint + dig.frozen, 1)
  noisy = jnp.clip(progress / max(c.sigma_until, 1e-6), 0., 1.)
  sigma = c.sigma * .5 * (1. + jnp.cos(jnp.pi * noisy)) * (noisy < 1.)
  return sigma, c.p_mix * jnp.clip(progress / max(c.p_mix_ramp, 1e-6), 0., 1.)


def _forward(
    model: ranker.Ranker, dig: dig_serving.Dig, catalog: types.Catalog,
    batches: Mapping[str, types.Batch], told: jax.Array, own: types.PyTree,
    state: types.TrainState, explore: tokenizers_base.Explore | None,
    p_mix: jax.Array, key: jax.Array, axis_name: str | None) -> Forward:
  """Both paths on one batch each, see `Forward`; told: of `with_siblings`."""
  rank, found = batches['rank'], batches['retrieval']
  sid, tokenizer = state.variables['codes'], dig.tokenizer
  item = _all_items(batches)
  x, rank_history, found_history = model.vectors(
      catalog, [item, rank.history.item, found.history.item])
  path = tokenizer.quantize(
      own, state.variables['tokenizer'], x, stored=sid[item], explore=explore,
      train=True, axis_name=axis_name)
  quantized = tokenizer.read(
      own, state.variables['tokenizer'], path, x, explore=explore,
      live=explore is not None)
  cut, (b, c) = rank.item.size, found.item.shape
  semantic, codes = quantized[cut:], path.codes[cut:]            # [N, L, D]
  if dig.config.loss.leaf == 'item':
    leaf = model.leaves(x[cut:], item[cut:])
    semantic = jnp.concatenate([semantic[:, :-1], leaf[:, None]], 1)
    found_history = model.leaves(found_history, found.history.item)
  levels, dim = semantic.shape[1:]
  rank_cross = found_cross = u2t = None
  if model.num_cross:
    # In one unit for both paths.
    cross = model.normalize('cross', jnp.concatenate(
        [layers.flat(rank.cross), layers.flat(found.cross)]), True)
    rank_cross, found_cross = cross[:cut].reshape(rank.cross.shape), cross[cut:]
    u2t = distill.bucket_mean(
        found_cross, codes, told.reshape(-1), axis_name)
  rows = (found.row[:, None] * c + jnp.arange(c)[None]).reshape(-1)

  def stand_in(guess: jax.Array) -> jax.Array:
    return distill.mix(
        rng.per_row(rng.stream(key, 'mix'), rows), u2t,
        guess.reshape(u2t.shape), p_mix).reshape(guess.shape)

  shape = (*rank.item.shape, dim)
  y_rank = dig_serving.ranking_path(
      dig, model, catalog, rank, x[:cut].reshape(shape), rank_history,
      quantized[:cut, -1].reshape(shape), rank_cross, True)
  facts, offset = _facts(dig, catalog, found, sid, state.variables['prefixes'])
  y_found, guess = dig_serving.retrieval_path(
      dig, model, model.users(found, found_history, False),
      semantic.reshape(b, c * levels, dim),
      facts.reshape(b, c * levels, -1), True, stand_in)
  return Forward(
      y_rank, y_found.reshape(b, c, levels), offset, path, quantized, x,
      found_cross, None if guess is None else guess.reshape(u2t.shape), u2t)


def _facts(dig: dig_serving.Dig, catalog: types.Catalog, batch: types.Batch,
           sid: jax.Array, tables: prefixes.Tables
           ) -> tuple[jax.Array, jax.Array]:
  """Returns what is known of the candidates' stored prefixes.

  Returns:
    ([B, C, L, F'], [B, C, L] of `prefixes.offsets`).
  """
  match = dig_serving.matches(dig, sid, batch, sid[batch.item])
  train, out = dig.config.train, []
  for level in range(sid.shape[1]):
    last = level + 1 == sid.shape[1]
    node = batch.item if last else tables['node'][batch.item, level]
    out.append(dig_serving.facts_of(
        dig, tables, catalog, batch, level, node,
        match if dig.config.loss.match else None)[0])
  return jnp.stack(out, 2), prefixes.offsets(
      tables, batch.item, match.sum(-1), batch.seen.mask.sum(-1),
      train.retrieval_negatives, train.retrieval_siblings,
      train.retrieval_seen_negatives)


def _all_items(batches: Mapping[str, types.Batch]) -> jax.Array:
  """Returns the candidates of both streams, [R + N]."""
  return jnp.concatenate([
      batches[name].item.reshape(-1) for name in ('rank', 'retrieval')])


def with_siblings(
    batch: types.Batch, tables: prefixes.Tables, num: int, key: jax.Array
) -> tuple[types.Batch, jax.Array]:
  """Adds negatives that share a prefix with each row's positive.

  Uniform ones hardly ever do: without others the last steps of a search would
  not be trained.

  Args:
    batch: [B, C] candidates, the positive first.
    tables: of the stored codes.
    num: S, how many more.
    key: of this step, the same on all devices.

  Returns:
    (the batch with [B, C + S] candidates; [B, C + S], 1 = valid and its u2i is
    known, which that of these is not).
  """
  if not num:
    return batch, batch.mask
  draw = jax.vmap(lambda own: jax.random.uniform(own, (num, 2)))(
      rng.per_row(rng.stream(key, 'siblings'), batch.row))
  item = prefixes.siblings(tables, batch.item[:, 0], draw)
  wide = lambda old, new: jnp.concatenate([old, new], 1)
  none = jnp.zeros(item.shape)
  cross = batch.cross
  if cross is not None:
    cross = wide(cross, jnp.zeros((*item.shape, cross.shape[-1])))
  return batch.replace(
      item=wide(batch.item, item), label=wide(batch.label, none), cross=cross,
      mask=wide(batch.mask, (item != batch.item[:, :1]).astype(jnp.float32))
  ), wide(batch.mask, none)


def joint_loss(
    dig: dig_serving.Dig, explore: bool, params: types.PyTree,
    state: types.TrainState, catalog: types.Catalog,
    batches: Mapping[str, types.Batch], *, key: jax.Array,
    axis_name: str | None) -> tuple[jax.Array, base.Aux]:
  """DIG's five losses (specification section 4).

  loss = rank * L_rank + recall * L_recall + code * (L_commit, L_book)
         + recon * L_recon + u2t * L_u2t

  Args:
    dig: the shared parts.
    explore: whether codes learn; else they stay, and L_commit and L_book fall
      away.
    params: differentiated.
    state: the rest of the state; its clock drives the schedules.
    catalog: item features.
    batches: 'rank' [B, C] exposures and 'retrieval' [B', 1 + negatives].
    key: of this step, the same on all devices.
    axis_name: data-parallel axis or None.

  Returns:
    (local share of the global mean loss, Aux).
  """
  sigma, p_mix = _noise(dig, state.clock)
  own, noise = params['tokenizer'], None
  found, told = with_siblings(
      batches['retrieval'], state.variables['prefixes'],
      dig.config.train.retrieval_siblings, key)
  batches = {**batches, 'retrieval': found}
  if explore:
    # Keyed by item, not by device: replicas must agree.
    noise = tokenizers_base.Explore(
        _all_items(batches), rng.stream(key, 'codes'), sigma)
  out, variables = ranking.apply(
      dig.config, dig.data, params, state, lambda model: _forward(
          model, dig, catalog, batches, told, own, state, noise, p_mix, key,
          axis_name), axis_name)
  terms = _terms(dig, out, batches, told, axis_name)
  metrics, notes = {}, {}
  if explore:
    terms['code'], metrics, variables['tokenizer'] = _code_terms(
        dig, out, own, state, batches, noise, axis_name)
    notes['schedule/sigma'] = sigma
  loss = sum(dig.config.loss[name] * term for name, term in terms.items())
  return loss, base.Aux({
      'loss': loss, **{f'loss/{k}': v for k, v in terms.items()},
      **{f'tokenizer/{k}': v for k, v in metrics.items()}}, variables, notes)


def _terms(dig: dig_serving.Dig, out: Forward,
           batches: Mapping[str, types.Batch], told: jax.Array,
           axis_name: str | None) -> dict[str, jax.Array]:
  """The losses that do not teach the codes' borders by themselves."""
  rank, found = batches['rank'], batches['retrieval']
  mean = lambda value, mask: losses.reduce(value, mask, axis_name)
  codes = out.path.codes[rank.item.size:].reshape(*found.item.shape, -1)
  keep = distill.prefix_negative_mask(codes, found.label)
  keep = keep * found.mask[..., None]
  labels = jnp.broadcast_to(found.label[..., None], out.y_found.shape)
  found_loss = losses.sigmoid_bce(out.y_found - out.offset, labels)
  levels = range(codes.shape[-1])  # They differ in how many cells are kept.
  terms = {
      'rank': ranking.loss(dig.config, out.y_rank, rank, axis_name),
      'recall': sum(mean(found_loss[..., level], keep[..., level])
                    for level in levels) / len(levels),
      'recon': mean(losses.mse_per_example(
          out.quantized[:, -1], jax.lax.stop_gradient(out.vectors)),
                    _mask(batches)),
  }
  if out.guess is not None:
    teacher = out.u2t
    if dig.config.loss.u2t_target == 'own':
      teacher = jnp.broadcast_to(out.cross[:, None], out.guess.shape)
    error = distill.u2t_loss(out.guess, jax.lax.stop_gradient(teacher))
    terms['u2t'] = mean(jnp.mean(error, -1), told.reshape(-1))
  return terms


def _mask(batches: Mapping[str, types.Batch]) -> jax.Array:
  """Returns which candidates of both streams are valid, [R + N]."""
  return jnp.concatenate([
      batches[name].mask.reshape(-1) for name in ('rank', 'retrieval')])


def _code_terms(
    dig: dig_serving.Dig, out: Forward, own: types.PyTree,
    state: types.TrainState, batches: Mapping[str, types.Batch],
    noise: tokenizers_base.Explore, axis_name: str | None
) -> tuple[jax.Array, dict[str, jax.Array], types.PyTree]:
  """Returns (the tokenizer's own loss, its metrics, its new variables)."""
  mask, before = _mask(batches), state.variables['tokenizer']
  per_item, metrics = dig.tokenizer.loss(
      own, before, out.vectors, out.path, item=noise.item,
      stored=state.variables['codes'][noise.item], explore=noise,
      axis_name=axis_name)
  label = batches['retrieval'].label.reshape(-1)
  traffic = jnp.concatenate([
      jnp.zeros(mask.shape[0] - label.shape[0]), label])
  after = dig.tokenizer.update(
      before, out.path, mask=traffic, axis_name=axis_name)
  return (losses.reduce(per_item, mask, axis_name),
          {k: losses.reduce(v, mask, axis_name) for k, v in metrics.items()},
          after)
