"""Training of Cornac's models that ends by the clock, not by epochs.

An optimizer step after the end raises; whatever state the model has then stays
usable. The best state of a few validations is kept.
"""

import contextlib
import math
import time
from typing import Any, Callable, Iterator

from cornac import models as cornac_models
from torch.optim import optimizer as optimizer_lib


# Of LETTER's budget, for the stages before its generator.
COLLABORATIVE, TOKENIZER = .1, .3


class TimeUp(Exception):
  """The budget is used up."""


@contextlib.contextmanager
def until(is_over: Callable[[], bool],
          before_step: Callable[[Any], None] | None = None) -> Iterator[None]:
  """Ends what runs inside at the first optimizer step when the time is over.

  Args:
    is_over: asked before each step.
    before_step: called with the optimizer before each step.
  """
  def hook(optimizer, args, kwargs):
    del args, kwargs
    if is_over():
      raise TimeUp
    if before_step is not None:
      before_step(optimizer)

  handle = optimizer_lib.register_optimizer_step_pre_hook(hook)
  try:
    yield
  except TimeUp:
    pass
  finally:
    handle.remove()


class Keeper:
  """Trains a model's torch module for a time, keeping the best state.

  The clock stands still while the model is validated.

  Attributes:
    steps: optimizer steps done.
    curve: (seconds of training, NDCG@10 on validation users) of each look.
  """

  def __init__(self, model: Any, judge: Callable[[Any], float],
               seconds: float, looks: int, cosine: bool):
    """Begins the budget of the last stage of training.

    Args:
      model: a Cornac model; its module is `model.model`.
      judge: model -> what is to be as large as can be.
      seconds: to train.
      looks: validations, at even times.
      cosine: whether the learning rate falls to 0, after a warm-up of a
        hundredth, over what is left.
    """
    self._model, self._judge = model, judge
    self._began, self._seconds = time.perf_counter(), seconds
    self._looks, self._cosine = looks, cosine
    self._best, self._state = -math.inf, None
    self.steps, self.curve = 0, []

  def _part(self) -> float:
    """Returns the share of the time that has gone."""
    return (time.perf_counter() - self._began) / max(self._seconds, 1e-9)

  def _before_step(self, optimizer: Any) -> None:
    if self.steps and self._part() * self._looks >= len(self.curve) + 1:
      self._look()
    if self._cosine:
      part = self._part()
      for group in optimizer.param_groups:
        group.setdefault('peak', group['lr'])
        group['lr'] = group['peak'] * (
            part / .01 if part < .01 else
            .5 * (1 + math.cos(math.pi * min((part - .01) / .99, 1.))))
    self.steps += 1

  def _look(self) -> None:
    now = time.perf_counter()
    value = self._judge(self._model)
    self.curve.append((now - self._began, value))
    self._began += time.perf_counter() - now
    if value > self._best:
      self._best = value
      self._state = {name: x.detach().clone() for name, x in
                     self._model.model.state_dict().items()}
    self._model.model.train()

  def run(self, fit: Callable[[], Any]) -> None:
    """Calls `fit`, and leaves the model in its best state."""
    with until(lambda: self._part() >= 1, self._before_step):
      fit()
    self._look()
    self._model.model.load_state_dict(self._state)
    self._model.model.eval()


def timed(kind: type[Any], budget: 'Budget') -> type[Any]:
  """Returns a TIGER or LETTER whose stages keep to a budget."""

  class Timed(kind):  # pylint: disable=missing-class-docstring

    def _fit_rqvae(self, *args):
      share = TOKENIZER + bool(self.cf_weight) * COLLABORATIVE
      with until(lambda: budget.spent() >= share):
        super()._fit_rqvae(*args)

    def _fit_seq2seq(self, *args):
      budget.keep(self, lambda: super(Timed, self)._fit_seq2seq(*args))

  return Timed


class Budget:
  """The wall-clock of one model, from its first to its last stage."""

  def __init__(self, seconds: float, judge: Callable[[Any], float], looks: int):
    """Starts the clock; see `Keeper` for the arguments."""
    self.began, self.seconds = time.perf_counter(), seconds
    self.judge, self.looks, self.keeper = judge, looks, None

  def spent(self) -> float:
    """Returns the share that the stages before the last have used."""
    return (time.perf_counter() - self.began) / self.seconds

  def keep(self, model: Any, fit: Callable[[], Any]) -> None:
    """Runs the last stage of `model`."""
    left = self.seconds * (1 - self.spent())
    self.keeper = Keeper(model, self.judge, left, self.looks,
                         isinstance(model, cornac_models.LETTER))
    self.keeper.run(fit)
