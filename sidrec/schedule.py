"""What a run does and when, as a value: a tuple of items, no predicates.

    sections = (
        Section('tokenizer', (
            start, *every(Train('tokenizer', 900), 300, between), assign)),
        Section('generator', (Train('generator', 2000),), watch, 'best'))

Alternation is `400 * (a, b, c)`. A `Cursor` says how far a run has come; what
comes after it is the same whether the run was ever stopped or not.
"""

import math
from typing import Callable, Iterator, Mapping, NamedTuple


class Train(NamedTuple):
  """Steps of a program. num_steps: how many; 0 = none."""
  program: str
  num_steps: int


class Host(NamedTuple):
  """Work between steps, at this place of the tuple.

  name: for the log.
  fn: (bench, state) -> changes, see `methods.base`.
  """
  name: str
  fn: Callable


class Watch(NamedTuple):
  """Validation of a section.

  every: steps of the section from one validation to the next; the end of the
    section is always one.
  monitor: metric -> weight; the weighted sum is maximized.
  patience: validations without a gain that end the section; 0 = never.
  probe: name of one of the method's probes to validate by; '': all metrics.
  """
  every: int
  monitor: Mapping[str, float]
  patience: int = 0
  probe: str = ''


class Section(NamedTuple):
  """A stretch of a run.

  name: for the log; sections of a method have different ones.
  items: what it does, in order.
  watch: None = it is not validated.
  keep: the state that the next section begins with: 'last', or the one that
    was 'best' on validation.
  """
  name: str
  items: tuple[Train | Host, ...]
  watch: Watch | None = None
  keep: str = 'last'

  @property
  def num_steps(self) -> int:
    """Steps of all its items."""
    return sum(x.num_steps for x in self.items if isinstance(x, Train))

  @property
  def num_events(self) -> int:
    """Steps and Hosts of all its items."""
    return self.num_steps + sum(isinstance(x, Host) for x in self.items)


class Cursor(NamedTuple):
  """How far a run has come; JSON, saved with every checkpoint.

  section, item: where it is; section = their number at the end of the run.
  done: steps of the item that are done.
  event: steps and Hosts done in the whole run: it numbers checkpoints.
  best, best_event, stale: the best monitored value, the event it had, and the
    validations since; they begin anew with each section.
  """
  section: int = 0
  item: int = 0
  done: int = 0
  event: int = 0
  best: float = -math.inf
  best_event: int = -1
  stale: int = 0

  def step(self) -> 'Cursor':
    """Returns the cursor after one more step of its item."""
    return self._replace(done=self.done + 1, event=self.event + 1)

  def next_item(self, is_host: bool) -> 'Cursor':
    """Returns the cursor behind its item."""
    return self._replace(item=self.item + 1, done=0, event=self.event + is_host)

  def next_section(self) -> 'Cursor':
    """Returns the cursor behind its section."""
    return Cursor(section=self.section + 1, event=self.event)


def every(item: Train, num_steps: int, *hosts: Host
          ) -> tuple[Train | Host, ...]:
  """Cuts a stretch of training, with host work between the pieces.

  Args:
    item: to cut.
    num_steps: of a piece; the last one has what is left. 0 = whole.
    *hosts: what is done between two pieces, and not behind the last.
  """
  if num_steps <= 0 or not hosts:
    return (item,)
  out, left = [], item.num_steps
  while left > num_steps:
    out += [item._replace(num_steps=num_steps), *hosts]
    left -= num_steps
  return (*out, item._replace(num_steps=left))


def steps_done(section: Section, at: Cursor) -> int:
  """Returns the steps of a section that are done at a cursor in it."""
  return at.done + sum(x.num_steps for x in section.items[:at.item]
                       if isinstance(x, Train))


def hosts_done(section: Section, at: Cursor, name: str) -> int:
  """Returns how many Hosts of a name a section has before a cursor."""
  return sum(isinstance(x, Host) and x.name == name
             for x in section.items[:at.item])


def remaining(section: Section, at: Cursor
              ) -> Iterator[tuple[Cursor, Train | Host]]:
  """Yields what a section has left to do.

  Args:
    section: which.
    at: a cursor in it.

  Yields:
    (the cursor before it, the item; of a Train the steps that are left).
    Items without steps are left out.
  """
  for item in section.items[at.item:]:
    is_host = isinstance(item, Host)
    if is_host:
      yield at, item
    else:
      left = item.num_steps - at.done
      if left > 0:
        yield at, item._replace(num_steps=left)
      at = at._replace(event=at.event + max(left, 0))
    at = at.next_item(is_host)
