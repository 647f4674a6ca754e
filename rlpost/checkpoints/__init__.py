"""Checkpoints: where they lie, what proves them, and how a run goes on from one."""
