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
from sidrec.methods import ranking
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
    dig: Dig, model: ranker.Ranker, batch: types.Batch, x: jax.Array,
    history: jax.Array, semantic: jax.Array | None, match: jax.Array | None,
    cross: jax.Array | None, train: bool) -> jax.Array:
  """Scores candidates by themselves and their own u2i.

  Args:
    dig: the shared parts.
    model: the tower.
    batch: B requests with C candidates.
    x: [B, C, D] e_v of the candidates.
    history: [B, T, D] e_v of the history.
    semantic: [B, C, D] what their codes say; None = nothing yet.
    match: [B, C, L, A] of `matches`, or None.
    cross: [B, C, X] u2i in standard units; None where there is none.
    train: whether batch norms read the batch.

  Returns:
    [B, C] logits.
  """
  h = model.attend(model.users(batch, history), x, _flat(match))
  item = model.normalize('item', x, train)
  if dig.config.loss.rank_item == 'both':
    if semantic is not None:
      item = item + model.normalize('rsid', semantic, train)
    item = item / jnp.sqrt(2.)
  return model.logits(h, item, cross, ranker.RANKING, train)


def retrieval_path(
    dig: Dig, model: ranker.Ranker, users: Any, e: jax.Array,
    match: jax.Array | None, train: bool = False,
    stand_in: Callable[[jax.Array], jax.Array] | None = None
) -> tuple[jax.Array, jax.Array | None]:
  """Scores token prefixes; their u2i is unknown.

  Args:
    dig: the shared parts.
    model: the tower.
    users: of `Ranker.users`, B requests.
    e: [B, Q, D] embeddings of prefixes.
    match: [B, Q, L, A] of `matches`, or None.
    train: whether batch norms read the batch.
    stand_in: guess [B, Q, X] -> what stands in for u2i; None = the guess.

  Returns:
    (logits [B, Q], MLP_u2t's guess [B, Q, X]; None without u2i). The guess
    sends no gradient to the prefix, and with `loss.stop_h` none to h.
  """
  sg = jax.lax.stop_gradient
  h = model.attend(users, e, _flat(match))
  guess = u2i = None
  if model.num_cross:
    guess = model.u2t(sg(h) if dig.config.loss.stop_h else h, sg(e))
    u2i = guess if stand_in is None else stand_in(guess)
    if not train and not dig.config.eval.use_u2t:
      u2i = jnp.zeros_like(u2i)  # Control arm: the mean, so nothing known.
  return model.logits(h, model.normalize('sid', e, train), u2i,
                      ranker.RETRIEVAL, train), guess


def both_paths(
    dig: Dig, model: ranker.Ranker, catalog: types.Catalog, batch: types.Batch
) -> tuple[jax.Array, jax.Array]:
  """Runs both paths on whole items without codes, for `Ranker.init`."""
  x, history = model.vectors(catalog, [batch.item, batch.history.item])
  match = no_matches(dig, batch.item.shape)
  leaf = model.leaves(x, batch.item)
  return ranking_path(
      dig, model, batch, x, history, x, match,
      model.normalize('cross', batch.cross, False), False), retrieval_path(
          dig, model, model.users(batch, history), leaf, match)[0]


def matches(dig: Dig, sid: jax.Array, history: types.Sequence,
            codes: jax.Array) -> jax.Array | None:
  """Matches [B, C, L, A] of prefixes [B, C, l] with the history, or None.

  Args:
    dig: the shared parts.
    sid: [V, L] stored codes.
    history: [B, T].
    codes: [B, C, l] int32.
  """
  if not dig.config.loss.match:
    return None
  action = jax.nn.one_hot(history.action, dig.data.num_actions)
  weight = action * (history.segment > 0)[..., None]
  return distill.match_counts(sid[history.item], weight, codes)


def no_matches(dig: Dig, shape: tuple[int, int]) -> jax.Array | None:
  """Returns matches [B, C, L, A] while there are no codes: none."""
  if not dig.config.loss.match:
    return None
  return jnp.zeros((*shape, len(dig.tokenizer.sizes), dig.data.num_actions))


def _flat(match: jax.Array | None) -> jax.Array | None:
  """[B, C, L, A] -> [B, C, L * A]."""
  return None if match is None else match.reshape(*match.shape[:2], -1)


def _prefix(dig: Dig, state: types.TrainState, codes: jax.Array) -> jax.Array:
  """Embeds prefixes [..., l] by the semantic tables: [..., D]."""
  return walk.prefix(dig.tokenizer.books(state.params['tokenizer']), codes)


def score(dig: Dig, state: types.TrainState, catalog: types.Catalog,
          batch: types.Batch) -> jax.Array:
  """Logits [B, C] of the ranking path, with the candidates' own u2i."""
  sid = state.variables['codes']
  codes = sid[batch.item]

  def fn(model: ranker.Ranker) -> jax.Array:
    x, history = model.vectors(catalog, [batch.item, batch.history.item])
    return ranking_path(
        dig, model, batch, x, history, _prefix(dig, state, codes),
        matches(dig, sid, batch.history, codes),
        model.normalize('cross', batch.cross, False), False)
  return ranking.serve(dig.config, dig.data, state, fn)


def token_score(dig: Dig, state: types.TrainState, catalog: types.Catalog,
                batch: types.Batch) -> jax.Array:
  """Logits [B, C] of the retrieval path at the last level, without u2i."""
  sid = state.variables['codes']
  codes = sid[batch.item]

  def fn(model: ranker.Ranker) -> jax.Array:
    e, history = model.vectors(catalog, [batch.item, batch.history.item])
    if dig.config.loss.leaf == 'code':
      e = _prefix(dig, state, codes)
    else:
      e = model.leaves(e, batch.item)
      history = model.leaves(history, batch.history.item)
    return retrieval_path(
        dig, model, model.users(batch, history), e,
        matches(dig, sid, batch.history, codes))[0]
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
  sid = state.variables['codes']

  def fn(model: ranker.Ranker) -> types.Beams:
    history, = model.vectors(catalog, [batch.history.item])
    leaves = None
    if item_leaf:
      # The nodes of the last level are the items.
      leaves = model.leaves(model.items(catalog.features, t.items), t.items)
      history = model.leaves(history, batch.history.item)
    users = model.users(batch, history)

    def score_fn(prefix: jax.Array, found: decode.Children) -> jax.Array:
      codes = jnp.concatenate(
          [found.take(prefix), found.code[..., None]], -1)
      if item_leaf and codes.shape[-1] == num_levels:
        e = leaves[found.node]
      else:
        e = _prefix(dig, state, codes)
      return retrieval_path(
          dig, model, users, e, matches(dig, sid, batch.history, codes))[0]

    return decode.beam_search(
        lambda prefix, carry: (functools.partial(score_fn, prefix), carry), t,
        beam_size=beam_size, bounds=bounds, batch_size=batch.user.shape[0],
        score=dig.config.eval.score, num_rungs=2)
  return ranking.serve(dig.config, dig.data, state, fn)
