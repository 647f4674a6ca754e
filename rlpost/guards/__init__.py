"""Guards against silent nonsense.

`signs` has what is looked for after each step, `watch` what happens then, `data` what is refused
before; the learner's own guard, which must act before the optimiser does, is in `finite`.
"""

from rlpost.guards.data import check_rewards, overlap
from rlpost.guards.signs import GUARDS
from rlpost.guards.watch import Guards

__all__ = ["GUARDS", "Guards", "check_rewards", "overlap"]
