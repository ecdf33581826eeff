"""The truth of a planted world: who is shown what, and who clicks.

One set of formulas serves the generator (`sidrec.data.planted`) and the
oracle, so what the oracle says is what the events were drawn from.
"""

import dataclasses

import numpy as np

HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

# Effects on the click logit of what this user did before, at u2i_strength 1.
ITEM_CLICK_EFFECT = 2.3
BRAND_CLICK_EFFECT = .35
SATIATION_EFFECT = 1.5
SATIATION_HOURS = 24.
# Weights of the user's earlier events when the policy repeats one of them.
REPEAT_NOT_CLICKED = .15
REPEAT_DAYS = 5.
# Deep in a session the position matters no more.
MAX_POSITION = 9


@dataclasses.dataclass(frozen=True)
class World:
  """What does not change in a planted world.

  item_top, item_leaf, item_brand: [V] int, the true ones.
  item_appeal: [V] logit of an item's quality.
  item_factor: [V, F] latent factors, the last one is the price.
  popularity: [V] probability of the popularity policy.
  user_leaf: [U, leaves] logit of a user's taste for a leaf category.
  user_factor: [U, F] what meets `item_factor`.
  user_bias: [U] logit.
  tab_top: [tabs, tops] logit of a top category in a tab.
  bias: logit of everything.
  position_effect, u2i_strength, noise, repeat_rate: the knobs.
  taste_share: of what is no repeat, the share drawn by taste.
  taste_sharpness: weight of the taste in the log-odds of that draw.
  """
  item_top: np.ndarray
  item_leaf: np.ndarray
  item_brand: np.ndarray
  item_appeal: np.ndarray
  item_factor: np.ndarray
  popularity: np.ndarray
  user_leaf: np.ndarray
  user_factor: np.ndarray
  user_bias: np.ndarray
  tab_top: np.ndarray
  bias: float
  position_effect: float
  u2i_strength: float
  noise: float
  repeat_rate: float
  taste_share: float
  taste_sharpness: float

  def affinity(self, users: np.ndarray) -> np.ndarray:
    """Returns the taste logit [B, V] of users [B] for all items."""
    taste = self.user_leaf[users][:, self.item_leaf]
    return taste + self.user_factor[users] @ self.item_factor.T

  def affinity_with(
      self, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Returns the taste logit [B] of users [B] for one item each [B]."""
    factors = self.user_factor[users] * self.item_factor[items]
    return self.user_leaf[users, self.item_leaf[items]] + factors.sum(-1)

  def taste_policy(self, users: np.ndarray) -> np.ndarray:
    """Returns the exposure probabilities [B, V] of the taste policy."""
    logits = self.taste_sharpness * self.affinity(users)
    logits += np.log(self.popularity)
    weights = np.exp(logits - logits.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)

  def click_probability(
      self,
      affinity: np.ndarray,
      user_bias: np.ndarray,
      items: np.ndarray,
      tab: np.ndarray,
      position: np.ndarray,
      consumption: np.ndarray,
  ) -> np.ndarray:
    """Returns sigmoid(logit / noise); all arguments broadcast together.

    Args:
      affinity: taste logits.
      user_bias: logits of the users.
      items: item rows.
      tab: tab of the request.
      position: position in the session, 0-based.
      consumption: logit of `consumption_effect`, before `u2i_strength`.
    """
    depth = np.log1p(np.minimum(position, MAX_POSITION))
    logit = (
        self.bias + user_bias + affinity + self.item_appeal[items]
        + self.tab_top[tab, self.item_top[items]]
        - self.position_effect * depth + self.u2i_strength * consumption)
    return 1. / (1. + np.exp(-logit / self.noise))


def consumption_effect(
    item_clicks: np.ndarray, brand_clicks: np.ndarray, hours: np.ndarray
) -> np.ndarray:
  """Computes the logit of repeat consumption: habit less satiation.

  Args:
    item_clicks: earlier clicks of the user on the item.
    brand_clicks: earlier clicks of the user on its brand.
    hours: since the item was last shown to the user; infinite if never.
  """
  habit = ITEM_CLICK_EFFECT * -np.expm1(-item_clicks)
  habit = habit + BRAND_CLICK_EFFECT * np.log1p(brand_clicks)
  return habit - SATIATION_EFFECT * np.exp(-hours / SATIATION_HOURS)


def repeat_weights(click: np.ndarray, age_ms: np.ndarray) -> np.ndarray:
  """Computes how likely an earlier event is to be repeated (not normalized).

  Args:
    click: 1 where the earlier event was clicked.
    age_ms: time since then, in milliseconds.
  """
  liked = REPEAT_NOT_CLICKED + (1. - REPEAT_NOT_CLICKED) * click
  return liked * np.exp(-age_ms / (REPEAT_DAYS * DAY_MS))


@dataclasses.dataclass(frozen=True)
class Truth:
  """Knows a planted world and the events that were drawn from it.

  Events are numbered as they are stored, items as in the table of items. All
  of an event's probabilities depend on strictly earlier events of its user
  and on the event's own time, tab and position (a model sees those too).

  click_probability: [E] probability that the event's item was clicked.
  world: the constants.
  user, item, tab, position: [E] int.
  time: [E] int64, milliseconds.
  click: [E] float, 1 = clicked.
  user_events: [U, N] the user's events in order of time, -1 = padding.
  rank: [E] place of the event in its row of `user_events`.
  """
  click_probability: np.ndarray
  world: World
  user: np.ndarray
  item: np.ndarray
  time: np.ndarray
  tab: np.ndarray
  position: np.ndarray
  click: np.ndarray
  user_events: np.ndarray
  rank: np.ndarray

  def reorder(self, order: np.ndarray) -> 'Reordered':
    """Returns the truth in other item numbers: `order` [V] of them to these."""
    return Reordered(self, order)

  def _past(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (row [P] in `events`, past event [P]) of all earlier events."""
    rank = self.rank[events]
    width = int(rank.max(initial=0))
    past = self.user_events[self.user[events], :width]
    rows, columns = np.nonzero(np.arange(width) < rank[:, None])
    return rows, past[rows, columns]

  def exposure(self, events: np.ndarray) -> np.ndarray:
    """Computes P(item v is shown | user, time, state) of the policy.

    Args:
      events: [B] event numbers; their own item plays no part.

    Returns:
      [B, V] float64, rows sum to 1.
    """
    events = np.asarray(events)
    world = self.world
    rows, past = self._past(events)
    age = self.time[events][rows] - self.time[past]
    num_items = world.popularity.shape[0]
    repeat = np.bincount(
        rows * num_items + self.item[past],
        repeat_weights(self.click[past], age),
        minlength=events.shape[0] * num_items,
    ).reshape(-1, num_items)
    total = repeat.sum(1, keepdims=True)
    rate = np.where(self.rank[events] > 0, world.repeat_rate, 0.)[:, None]
    repeat /= np.where(total > 0, total, 1.)
    fresh = world.taste_share * world.taste_policy(self.user[events])
    fresh += (1. - world.taste_share) * world.popularity
    return rate * repeat + (1. - rate) * fresh

  def click_given_exposure(self, events: np.ndarray) -> np.ndarray:
    """Computes P(click | item v is shown, user, context, state).

    Args:
      events: [B] event numbers; their own item plays no part.

    Returns:
      [B, V] float64 probabilities.
    """
    events = np.asarray(events)
    world = self.world
    shape = (events.shape[0], world.popularity.shape[0])
    num_brands = int(world.item_brand.max()) + 1
    rows, past = self._past(events)
    item, click = self.item[past], self.click[past]
    item_clicks = np.bincount(
        rows * shape[1] + item, click, minlength=shape[0] * shape[1])
    brand_clicks = np.bincount(
        rows * num_brands + world.item_brand[item], click,
        minlength=shape[0] * num_brands).reshape(-1, num_brands)
    last = np.full(shape, -np.inf)
    np.maximum.at(last, (rows, item), self.time[past].astype(np.float64))
    hours = (self.time[events][:, None] - last) / HOUR_MS
    effect = consumption_effect(
        item_clicks.reshape(shape), brand_clicks[:, world.item_brand], hours)
    user = self.user[events]
    return world.click_probability(
        world.affinity(user), world.user_bias[user][:, None],
        np.arange(shape[1]), self.tab[events][:, None],
        self.position[events][:, None], effect)

  def exposure_and_click(
      self, events: np.ndarray, rows_per_chunk: int = 256) -> np.ndarray:
    """Computes P(the next clicked item is v | user, time, state).

    Ranking by it is the best that any retriever can do: P(v is shown) times
    P(v is clicked once shown), normalized over the catalog. Tab and position
    are the event's own, not averaged over.

    Args:
      events: [B] event numbers; their own item plays no part.
      rows_per_chunk: rows computed at once (memory is rows times V).

    Returns:
      [B, V] float32, rows sum to 1.
    """
    events = np.asarray(events)
    out = np.empty(
        (events.shape[0], self.world.popularity.shape[0]), np.float32)
    for start in range(0, events.shape[0], rows_per_chunk):
      part = events[start:start + rows_per_chunk]
      joint = self.exposure(part) * self.click_given_exposure(part)
      out[start:start + rows_per_chunk] = joint / joint.sum(1, keepdims=True)
    return out


@dataclasses.dataclass(frozen=True)
class Reordered:
  """A truth in the item numbers of a data set.

  What it says is computed in the world's own numbers and then put in order, so
  that not even rounding depends on the numbers.

  truth: in the world's own numbers.
  order: [V] the world's number of each item of the data set.
  """
  truth: Truth
  order: np.ndarray

  @property
  def click_probability(self) -> np.ndarray:
    """Returns [E], the probability that the event's item was clicked."""
    return self.truth.click_probability

  def exposure_and_click(
      self, events: np.ndarray, rows_per_chunk: int = 256) -> np.ndarray:
    """Computes what `Truth.exposure_and_click` does: [B, V] float32."""
    return self.truth.exposure_and_click(events, rows_per_chunk)[:, self.order]
