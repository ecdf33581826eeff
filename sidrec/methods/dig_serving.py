"""DIG's two paths, each written once for training and for serving.

Serving reads running statistics and stored codes, without noise (arXiv
2605.14853, specification section 6).
"""

import functools
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections

from sidrec import decode
from sidrec import distill
from sidrec import trie
from sidrec import types
from sidrec.methods import prefixes
from sidrec.methods import ranking
from sidrec.models import layers
from sidrec.models import ranker
from sidrec.tokenizers import base as tokenizers_base
from sidrec.tokenizers import walk


class Dig(NamedTuple):
  """What DIG's functions share.

  config: the whole configuration.
  data: static facts of the data set.
  tokenizer: the quantizer.
  joint, frozen: steps in which the codes learn, and after that.
  """
  config: ml_collections.ConfigDict
  data: types.DataSpec
  tokenizer: tokenizers_base.Tokenizer
  joint: int
  frozen: int


def ranking_path(
    dig: Dig, model: ranker.Ranker, catalog: types.Catalog, batch: types.Batch,
    x: jax.Array, history: jax.Array, semantic: jax.Array | None,
    cross: jax.Array | None, train: bool) -> jax.Array:
  """Scores candidates by themselves and their own u2i.

  Args:
    dig: the shared parts.
    model: the tower.
    catalog: item features.
    batch: B requests with C candidates.
    x: [B, C, D] e_v of the candidates.
    history: [B, T, D] e_v of the history.
    semantic: [B, C, D] what their codes say; None = nothing yet.
    cross: [B, C, X] u2i in standard units; None where there is none.
    train: whether batch norms read the batch.

  Returns:
    [B, C] logits.
  """
  h = model.attend(model.users(batch, history, True), x)
  item = model.normalize('item', x, train)
  if dig.config.loss.rank_item == 'both':
    if semantic is not None:
      item = item + model.normalize('rsid', semantic, train)
    item = item / jnp.sqrt(2.)
  facts = _facts(prefixes.known_of(catalog, batch, batch.item),
                 jnp.zeros(x.shape[:2]), no_matches(dig, x.shape[:2]))
  return model.logits(h, item, cross, facts, ranker.RANKING, train)


def retrieval_path(
    dig: Dig, model: ranker.Ranker, users: Any, e: jax.Array,
    facts: jax.Array, train: bool = False,
    stand_in: Callable[[jax.Array], jax.Array] | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Scores token prefixes; their u2i is unknown.

  Args:
    dig: the shared parts.
    model: the tower.
    users: of `Ranker.users`, B requests.
    e: [B, Q, D] embeddings of prefixes.
    facts: [B, Q, F] of `facts_of`.
    train: whether batch norms read the batch.
    stand_in: guess [B, Q, X] -> what stands in for u2i; None = the guess.

  Returns:
    (logits [B, Q], MLP_u2t's guess [B, Q, X]; None without u2i). The guess
    sends no gradient to the prefix, and with `loss.stop_h` none to h.
  """
  sg = jax.lax.stop_gradient
  h = model.attend(users, e)
  guess = u2i = None
  if model.num_cross:
    guess = model.u2t(sg(h) if dig.config.loss.stop_h else h, sg(e))
    u2i = guess if stand_in is None else stand_in(guess)
    if not train and not dig.config.eval.use_u2t:
      u2i = jnp.zeros_like(u2i)  # Control arm: the mean, so nothing known.
  return model.logits(h, model.normalize('sid', e, train), u2i, facts,
                      ranker.RETRIEVAL, train), guess


def both_paths(
    dig: Dig, model: ranker.Ranker, catalog: types.Catalog, batch: types.Batch
) -> tuple[jax.Array, jax.Array]:
  """Runs both paths on whole items without codes, for `Ranker.init`."""
  x, history = model.vectors(catalog, [batch.item, batch.history.item])
  shape = batch.item.shape
  facts = _facts(prefixes.known_of(catalog, batch, batch.item),
                 jnp.zeros(shape), no_matches(dig, shape))
  return ranking_path(
      dig, model, catalog, batch, x, history, x,
      model.normalize('cross', batch.cross, False), False), retrieval_path(
          dig, model, model.users(batch, history, False),
          model.leaves(x, batch.item), facts)[0]


def _facts(known: jax.Array | None, size: jax.Array, match: jax.Array | None
           ) -> jax.Array:
  """Joins what needs no guess: [B, C, F'].

  Args:
    known: [B, C, F] of `Catalog.known`, or None.
    size: [B, C] log of the items below.
    match: [B, C, L, A] counts of `matches`, or None.
  """
  if match is not None:
    match = jnp.log1p(match).reshape(*match.shape[:2], -1)
  return layers.join([known, size[..., None], match])


def facts_of(
    dig: Dig, tables: prefixes.Tables, catalog: types.Catalog,
    batch: types.Batch, level: int, node: jax.Array, match: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
  """Returns what is known of prefixes for sure, and log of the items below.

  Args:
    dig: the shared parts.
    tables: of the stored codes.
    catalog: item features.
    batch: B requests.
    level: of the prefixes, from 0.
    node: [B, C] of the prefixes; of the last level items.
    match: [B, C, L, A] counts of `matches`: those of longer prefixes are left
      out; or None.

  Returns:
    ([B, C, F'], [B, C]).
  """
  known, size = prefixes.of_nodes(tables, catalog, batch, level, node)
  if match is not None:
    upto = jnp.arange(len(dig.tokenizer.sizes)) <= level
    match = match * upto[None, None, :, None]
  return _facts(known, size, match), size


def matches(dig: Dig, sid: jax.Array, batch: types.Batch, codes: jax.Array
            ) -> jax.Array:
  """Counts [B, C, L, A] of seen items below prefixes [B, C, l], by action.

  Args:
    dig: the shared parts.
    sid: [V, L] stored codes.
    batch: B requests.
    codes: [B, C, l] int32.
  """
  return distill.match_counts(
      sid[batch.seen.item], _actions(dig, batch), codes)


def _actions(dig: Dig, batch: types.Batch) -> jax.Array:
  """Returns what was done with each seen item, [B, N, A], 0 where nothing."""
  action = jax.nn.one_hot(batch.seen.action, dig.data.num_actions)
  return action * batch.seen.mask[..., None]


def _child_matches(dig: Dig, sid: jax.Array, batch: types.Batch,
                   prefix: jax.Array, found: decode.Children
                   ) -> jax.Array | None:
  """Returns `matches` of the children of prefixes, if they are read."""
  if not dig.config.loss.match:
    return None
  seen, weight = sid[batch.seen.item], _actions(dig, batch)
  level = prefix.shape[-1]
  beam = found.take(jnp.broadcast_to(
      jnp.arange(prefix.shape[1]), prefix.shape[:2]))
  own = distill.match_children(
      seen, weight, prefix, dig.tokenizer.sizes[level], beam, found.code)
  return found.take(distill.match_counts(seen, weight, prefix)).at[
      :, :, level].set(own)


def no_matches(dig: Dig, shape: tuple[int, int]) -> jax.Array | None:
  """Returns matches [B, C, L, A] that say nothing; None where none are read."""
  if not dig.config.loss.match:
    return None
  return jnp.zeros((*shape, len(dig.tokenizer.sizes), dig.data.num_actions))


def _read(dig: Dig, match: jax.Array) -> jax.Array | None:
  """Returns the matches, where the retrieval path reads them."""
  return match if dig.config.loss.match else None


def _prefix(dig: Dig, state: types.TrainState, codes: jax.Array) -> jax.Array:
  """Embeds prefixes [..., l] by the semantic tables: [..., D]."""
  return walk.prefix(dig.tokenizer.books(state.params['tokenizer']), codes)


def score(dig: Dig, state: types.TrainState, catalog: types.Catalog,
          batch: types.Batch) -> jax.Array:
  """Logits [B, C] of the ranking path, with the candidates' own u2i."""
  codes = state.variables['codes'][batch.item]

  def fn(model: ranker.Ranker) -> jax.Array:
    x, history = model.vectors(catalog, [batch.item, batch.history.item])
    return ranking_path(
        dig, model, catalog, batch, x, history, _prefix(dig, state, codes),
        model.normalize('cross', batch.cross, False), False)
  return ranking.serve(dig.config, dig.data, state, fn)


def token_score(dig: Dig, state: types.TrainState, catalog: types.Catalog,
                batch: types.Batch) -> jax.Array:
  """Logits [B, C] of the retrieval path at the last level, without u2i."""
  sid = state.variables['codes']
  codes = sid[batch.item]
  facts, _ = facts_of(
      dig, state.variables['prefixes'], catalog, batch, sid.shape[1] - 1,
      batch.item, _read(dig, matches(dig, sid, batch, codes)))

  def fn(model: ranker.Ranker) -> jax.Array:
    e, history = model.vectors(catalog, [batch.item, batch.history.item])
    if dig.config.loss.leaf == 'code':
      e = _prefix(dig, state, codes)
    else:
      e = model.leaves(e, batch.item)
      history = model.leaves(history, batch.history.item)
    return retrieval_path(
        dig, model, model.users(batch, history, False), e, facts)[0]
  return ranking.serve(dig.config, dig.data, state, fn)


def retrieve(dig: Dig, state: types.TrainState, catalog: types.Catalog,
             batch: types.Batch, t: types.Trie, beam_size: int,
             bounds: trie.Bounds) -> types.Beams:
  """Beam search over the trie, scored by the mixer (specification section 6).

  Args:
    dig: the shared parts.
    state: the state.
    catalog: item features.
    batch: B requests; candidates are not read.
    t: trie of the served codes.
    beam_size: W.
    bounds: `trie.bounds`, static.

  Returns:
    Beams [B, W], scores are logits of the last level.
  """
  num_levels = len(dig.tokenizer.sizes)
  item_leaf = dig.config.loss.leaf == 'item'
  sid, tables = state.variables['codes'], state.variables['prefixes']

  def fn(model: ranker.Ranker) -> types.Beams:
    history, = model.vectors(catalog, [batch.history.item])
    leaves = None
    if item_leaf:
      # The nodes of the last level are the items.
      leaves = model.leaves(model.items(catalog.features, t.items), t.items)
      history = model.leaves(history, batch.history.item)
    users = model.users(batch, history, False)

    def score_fn(prefix: jax.Array, found: decode.Children) -> jax.Array:
      codes = jnp.concatenate(
          [found.take(prefix), found.code[..., None]], -1)
      level, node = codes.shape[-1] - 1, found.node
      last = level + 1 == num_levels
      if item_leaf and last:
        e = leaves[node]
      else:
        e = _prefix(dig, state, codes)
      facts, size = facts_of(
          dig, tables, catalog, batch, level, t.items[node] if last else node,
          _child_matches(dig, sid, batch, prefix, found))
      logits = retrieval_path(dig, model, users, e, facts)[0]
      # A logit is a mean over the items below; a beam keeps where many are.
      return logits + size if dig.config.eval.beam_mass else logits

    return decode.beam_search(
        lambda prefix, carry: (functools.partial(score_fn, prefix), carry), t,
        beam_size=beam_size, bounds=bounds, batch_size=batch.user.shape[0],
        score=dig.config.eval.score, num_rungs=2)
  return ranking.serve(dig.config, dig.data, state, fn)
