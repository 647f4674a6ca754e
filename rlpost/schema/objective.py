"""What is optimised: the objective, the KL penalty and the off-policy correction."""

from dataclasses import dataclass

from rlpost.choices import Correction, KLEstimator, KLIn


@dataclass(kw_only=True)
class ObjectiveConfig:
    """Base of the ratio-control objectives' hyperparameters; see `rlpost.objectives`."""

    name: str = "???"


@dataclass(kw_only=True)
class KLConfig:
    """The KL penalty's form; its size is `kl_coef`."""

    estimator: KLEstimator = KLEstimator.k3
    where: KLIn = KLIn.loss


@dataclass(kw_only=True)
class CorrectionConfig:
    """The off-policy correction and its bounds; see `rlpost.corrections`."""

    kind: Correction = Correction.none
    cap: float = 2.0  # tis, tis_seq: the largest weight
    low: float = 0.5  # icepop, seq_mask: what is kept lies between these two
    high: float = 2.0
