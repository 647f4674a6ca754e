"""Which actors a cluster can hold, where they go, and what is said where they cannot."""

import pytest

from rlpost.choices import Placement
from rlpost.config import load
from rlpost.errors import ConfigError
from rlpost.placing.fitting import Node, misfits
from rlpost.placing.seats import seats, together

ROLES = ("learner", "rollout", "reference", "reward")
EIGHT = ["ray.address=10.0.0.1:6379", "learner.num_gpus=1", "rollout.num_gpus=1"]


def node(number, cpus, gpus, **labels):
    return Node(name=f"10.0.0.{number}", labels=labels, resources={"CPU": cpus, "GPU": gpus})


def placed(*overrides):
    return seats(load("quickstart", [*EIGHT, *overrides]), ROLES)


NODES = [node(1, 16.0, 4.0, pool="train"), node(2, 16.0, 4.0, pool="sample")]


def test_what_fits_is_not_refused():
    apart = ["+learner.node_labels.pool=train", "+rollout.node_labels.pool=sample"]
    workers = ["learner.num_ranks=4", "rollout.num_workers=2", "rollout.num_gpus=2"]
    assert not list(misfits(placed(*workers, "rollout.tensor_parallel_size=2", *apart), NODES))
    assert not list(misfits(placed("learner.num_ranks=2", "learner.placement=spread"), NODES))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ["learner.num_ranks=8"],
            "the run needs 9 GPU and the cluster has 8: GPU: 8 learner x 1 + 1 rollout x 1. Ask",
        ),
        (
            ["learner.num_ranks=6", "+learner.node_labels.pool=train"],
            (
                "the run needs 6 GPU and the nodes with the labels of "
                "learner.node_labels={pool: train} have 4: GPU: 6 learner x 1. Ask"
            ),
        ),
        (
            ["+reward.node_labels.zone=north"],
            (
                "no node has the labels of reward.node_labels={zone: north}: "
                "10.0.0.1 (16 CPU 4 GPU, {pool: train}); 10.0.0.2 (16 CPU 4 GPU, "
                "{pool: sample}). Start Ray on some"
            ),
        ),
        (
            ["rollout.num_gpus=6", "rollout.tensor_parallel_size=6"],
            "rollout-0 needs 0.8 CPU and 6 GPU on one node, and none has that: 10.0.0.1",
        ),
        (
            ["learner.num_ranks=6", "learner.placement=strict_pack"],
            "learner.placement=strict_pack puts 6 actors with 4.8 CPU and 6 GPU on one node, and",
        ),
        (
            ["rollout.num_workers=3", "rollout.placement=strict_spread"],
            "rollout.placement=strict_spread puts 3 actors on 3 nodes, and 2 can hold one: 10.0.0",
        ),
    ],
    ids=["sum", "sum under a label", "no such label", "engine", "on one node", "one a node"],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic(overrides, said):
    assert next(
        misfits(placed("warmstart.steps=0", "prompts_per_step=48", *overrides), NODES)
    ).startswith(said)


ROLLOUTS = [["rollout-0"], ["rollout-1"]]


def names(wanted):
    """Return who is reserved with whom: groups of bundles of actors."""
    return [[[seat.name for seat in bench] for bench in group] for group in together(wanted)]


def test_packed_roles_are_reserved_together_and_others_by_themselves():
    wanted = placed("learner.num_ranks=2", "rollout.num_workers=2", "rollout.placement=spread")
    assert names(wanted) == [[["learner-0"], ["learner-1"], ["reward-0"]], ROLLOUTS]
    assert wanted[2].placement is Placement.spread
    both = placed("learner.placement=spread", "rollout.placement=spread")
    assert names(both) == [[["learner-0"]], [["rollout-0"]], [["reward-0"]]]


def test_a_label_that_is_no_field_yet_is_told_how_to_add():
    with pytest.raises(ConfigError, match=r"plus sign, \+learner\.node_labels\.pool=\.\.\."):
        load("quickstart", ["learner.node_labels.pool=train"])
