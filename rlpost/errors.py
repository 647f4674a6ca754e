"""The errors a caller can act on; each names the field, the rule, the value and the remedy."""


class RlpostError(Exception):
    """Base of every error that rlpost raises on purpose."""


class ConfigError(RlpostError, ValueError):
    """A recipe or an override asks for something impossible."""


class DataError(RlpostError, ValueError):
    """A data set, a prompt or a model's answer does not have the promised form."""


class ResourceError(RlpostError, RuntimeError):
    """The machine or the cluster cannot hold what the recipe asks for."""


class ActorError(RlpostError, RuntimeError):
    """An actor died or raised; the message names the actor, its node and the cause."""


class LostError(ActorError):
    """An actor is gone: it died, hung and was killed, or its node was lost."""


class WeightSyncError(RlpostError, RuntimeError):
    """The weights that arrived in a rollout worker are not the weights that were sent."""


class StalenessError(RlpostError, RuntimeError):
    """A batch holds tokens sampled by weights older than the recipe allows."""


class GuardError(RlpostError, RuntimeError):
    """A run's own numbers say that going on is in vain; the message names the guard."""


class DeadlineError(RlpostError, TimeoutError):
    """What was waited for did not come in time; the message says what and for how long."""


class StallError(RlpostError, TimeoutError):
    """Nothing in a run advanced any more; the message says since when and what was waited for."""


class StoppedError(RlpostError, InterruptedError):
    """A run has ended early because it was asked to, after a checkpoint."""


class CheckpointError(RlpostError, RuntimeError):
    """A checkpoint is damaged, or could not be written."""
