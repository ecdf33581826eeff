"""Saves and restores the train state, and notices what is damaged."""

from sidrec.checkpoint.saver import Checkpointer

__all__ = ['Checkpointer']
