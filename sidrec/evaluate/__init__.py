"""Evaluation of a state on a split, and of a finished run."""

from sidrec.evaluate.evaluator import Evaluator
from sidrec.evaluate.evaluator import monitor
from sidrec.evaluate.loaded import Loaded
from sidrec.evaluate.loaded import load
from sidrec.evaluate.loaded import write_codes
from sidrec.evaluate.loaded import write_file

__all__ = ['Evaluator', 'Loaded', 'load', 'monitor', 'write_codes',
           'write_file']
