"""A training on a cluster that gets a node, which is drained later: `elastic.py OVERRIDES`.

Prints how many of its two workers served, one number for steps in a row with the same.
"""

import asyncio
import contextlib
import subprocess
import sys
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace

from ray.cluster_utils import Cluster

from actors.launch import running
from actors.runtime import ray_runtime
from actors.training import train_with
from actors.workshop import Workshop
from rlpost.config import load
from rlpost.errors import StoppedError
from rlpost.placing.seats import ROLES

RAY = Path(sys.executable).with_name("ray")


class Owner:
    """Whose cluster it is: adds a node after the first step, and drains it once it is of use."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.node = None
        self.draining = None
        self.counts = []
        self.ending = SimpleNamespace(stopped=None)

    def phase(self, name):
        pass

    def message(self, text):
        sys.stderr.write(f"{text}\n")

    def step(self, step, values):
        serving = int(values.get("workers/rollout", 1))
        self.counts.append(serving)
        if step == 1:
            self.node = self.cluster.add_node(num_cpus=1, wait=False)
        if self.draining is None and self.counts[-3:] == [2, 2, 2]:
            words = ["--node-id", self.node.node_id, "--address", self.cluster.address]
            words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
            self.draining = subprocess.Popen(
                [RAY, "drain-node", *words, "--deadline-remaining-seconds", "600"]
            )
        if self.draining is not None and self.counts[-3:] == [1, 1, 1]:
            assert self.draining.wait(60) == 0
            self.ending.stopped = StoppedError("seen enough")


async def train(config, owner):
    async with running(config, ROLES) as cast:
        with contextlib.suppress(StoppedError):
            preparing = asyncio.to_thread(Workshop, config)
            await train_with(cast, config, preparing, owner, ending=owner.ending)


def main(words):
    head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 10**8}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        config = load("quickstart", [*words, f"ray.address={cluster.address}"])
        owner = Owner(cluster)
        with ray_runtime(config.ray):
            asyncio.run(train(config, owner))
        sys.stdout.write(f"{[count for count, _ in groupby(owner.counts)]}\n")
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main(sys.argv[1:])
