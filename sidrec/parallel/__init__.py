"""One per-device step on all devices of all processes."""

from sidrec.parallel.devices import initialize
from sidrec.parallel.devices import make
from sidrec.parallel.devices import Parallel
from sidrec.parallel.devices import WRAPPERS
