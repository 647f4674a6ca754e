"""The Ray of a run: one that is there, or a lean one on this machine that ends with the run."""

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from secrets import token_hex
from typing import Any
from unittest.mock import patch
from uuid import uuid4

import grpc
import psutil
import ray
from ray._private import services, worker
from ray._private.node import Node
from ray._private.ray_constants import DASHBOARD_ADDRESS, KV_NAMESPACE_DASHBOARD
from ray._raylet import AuthenticationTokenLoader, Config  # pyrefly: ignore[missing-module-attribute]  # compiled
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError
from ray.experimental.internal_kv import _internal_kv_put

from actors import undertaker
from actors.gathering import gather
from rlpost.errors import ActorError, ConfigError
from rlpost.schema import RayConfig

log = logging.getLogger(__name__)

_ENVIRONMENT = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Every process here is an actor with an environment of its own: idle ones are only a load.
    "RAY_enable_worker_prestart": "0",
    "RAY_prestart_worker_first_driver": "0",
}
LOOPBACK = "127.0.0.1"
_TOKENS = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}  # a user's own choice
_ANSWER_S = 30.0
_ATTEMPTS = 3
_ENDING_S = 1.0  # Ray's agents look only now and then whether their raylet is still there
# An idle Ray wakes up many times a second, which is a good part of two slow cores: on one machine,
# and with nobody to look at its dashboard, it need not.
_SELDOM = {
    "RAY_raylet_report_resources_period_milliseconds": "1000",
    "RAY_raylet_check_gc_period_milliseconds": "2000",
    "RAY_memory_monitor_refresh_ms": "1000",
    "RAY_local_fs_monitor_interval_ms": "2000",
    "RAY_kill_idle_workers_interval_ms": "2000",
    "RAY_object_manager_timer_freq_ms": "1000",
    "RAY_io_context_monitor_probe_interval_ms": "10000",
    "RAY_gcs_pull_resource_loads_period_milliseconds": "5000",
    "RAY_debug_dump_period_milliseconds": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_ray_events_report_interval_ms": "0",
    "RAY_event_stats": "0",
    "RAY_emit_main_service_metrics": "0",
    "RAY_enable_metrics_collection": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "60000",
    "EVENT_AGENT_REPORT_INTERVAL_SECONDS": "5",
}
# Processes that nobody here needs, slow to start; `ray.init` has no option against them.
_UNUSED = ("start_log_monitor", "start_monitor", "start_api_server")


@contextmanager
def ray_runtime(settings: RayConfig) -> Generator[None]:
    """Connect to Ray, or start one on this machine that ends with the block, all of it."""
    _set_environment(_ENVIRONMENT)
    if ray.is_initialized():
        yield
        return
    with ExitStack() as stack:
        undertaken = stack.enter_context(_undertaker()) if settings.address is None else None
        others = psutil.Process().children()
        ours = None
        stack.enter_context(patch.object(worker, "print_to_stdstream", _noted))
        try:
            if settings.address is not None:
                _connect(settings)
            else:
                _start(settings)
            if undertaken is not None and worker.global_worker.node is not None:
                undertaken(f"{worker.global_worker.node.get_session_dir_path()}/")
            ours = _children_but(others)
            yield
        finally:
            _end(_children_but(others) if ours is None else ours)


@contextmanager
def _undertaker() -> Generator[Callable[[str], None]]:
    """Have all that is started in the block killed should this process be killed in it.

    Yields what is to be told the folder of the Ray session.
    """
    mark = uuid4().hex
    process = subprocess.Popen(  # noqa: S603 - our own file
        [sys.executable, "-I", "-S", undertaker.__file__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        bufsize=1,
        start_new_session=True,  # out of the reach of a terminal's Ctrl-C and of its end
    )
    stdin = process.stdin
    assert stdin is not None
    os.environ[undertaker.MARK] = mark

    def tell(line: str) -> None:
        with suppress(BrokenPipeError):
            stdin.write(f"{line}\n")

    try:
        yield tell
    finally:
        del os.environ[undertaker.MARK]
        tell(undertaker.IN_ORDER)
        with suppress(BrokenPipeError):
            stdin.close()
        process.wait()


def _noted(told: Mapping[str, Any], **_: Any) -> None:
    """Keep what Ray would print on the death of each worker, in ten lines; ours has one."""
    log.debug("Ray: %s", " ".join(told["lines"]))


def _start(settings: RayConfig) -> None:
    with ExitStack() as without:
        if not settings.dashboard:
            _set_environment(_SELDOM)
            for name in _UNUSED:
                without.enter_context(patch.object(Node, name, lambda *_, **__: None))
        # Ray gives its agent 15 s to start, whatever the machine, and gives up: the next attempt
        # finds the agent's files read and compiled (ray-project/ray issue 65983).
        for attempt in range(1, _ATTEMPTS + 1):
            others = psutil.Process().children()
            try:
                _init(settings)
                break
            except Exception as error:  # Ray raises no class of its own
                _end(_children_but(others))
                if attempt == _ATTEMPTS:
                    raise ActorError(
                        f"Ray did not start on this machine in {_ATTEMPTS} attempts: {error} "
                        "(log: /tmp/ray/session_latest/logs/raylet.out)"
                    ) from error
                log.warning("Ray did not start, which happens on a slow machine: trying again")
    if not settings.dashboard:
        # Ray's agent asks for the address once a second until there is one.
        _internal_kv_put(DASHBOARD_ADDRESS, "no dashboard", namespace=KV_NAMESPACE_DASHBOARD)


def _init(settings: RayConfig) -> None:
    if not _TOKENS & os.environ.keys():
        # Ray's own would lie in ~/.ray, readable for every user of the machine.
        os.environ["RAY_AUTH_TOKEN"] = token_hex(32)
    # Ray takes loopback for a slip and puts the machine's address in its place, on Linux.
    with patch.object(services, "resolve_ip_for_localhost", lambda host: host):
        ray.init(
            address="local",
            num_cpus=settings.num_cpus or os.cpu_count(),
            num_gpus=settings.num_gpus,
            include_dashboard=settings.dashboard,
            object_store_memory=int(settings.object_store_gib * 2**30),
            log_to_driver=False,
            logging_level=logging.ERROR,
            _node_ip_address=LOOPBACK,
        )


def _connect(settings: RayConfig) -> None:
    """Connect to a cluster, one that lets nobody in without its token if the recipe says so.

    Raises:
        ConfigError: there is no token here, the cluster asks for none, or does not let us in.
    """
    where = f"ray.address={settings.address}"
    remedy = (
        "`ray get-auth-token --generate` makes a token in ~/.ray/auth_token: have it on every node "
        "(or in RAY_AUTH_TOKEN) and start each with RAY_AUTH_MODE=token ray start ..."
    )
    accept = "or accept a cluster without, with ray.token_auth=false"
    if settings.token_auth:
        _set_environment({"RAY_AUTH_MODE": "token"})
        Config.initialize("")  # Ray has read its environment when it was imported
        tokens = AuthenticationTokenLoader.instance()
        if not tokens.has_token(ignore_auth_mode=True):
            raise ConfigError(f"{where}: no token to show to the cluster. {remedy}; {accept}")
        token = tokens.get_raw_token(ignore_auth_mode=True)
        if ":" in str(settings.address) and not lets_in(str(settings.address), token):
            raise ConfigError(f"{where}: the cluster does not take our token. {remedy}")
    try:
        ray.init(address=settings.address, log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, ConnectionError) as error:
        first = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"{where}: {first}: it is not there, or does not take our token. {remedy}"
        ) from error
    if settings.token_auth and lets_in(ray.get_runtime_context().gcs_address):
        ray.shutdown()
        raise ConfigError(
            f"{where}: this cluster asks for no token: whoever reaches it can run code there. "
            f"{remedy}; {accept}"
        )
    gather(settings.nodes, settings.nodes_timeout_s)


def lets_in(address: str, token: str | None = None) -> bool:
    """Say whether a cluster's head answers a call that carries this token, or none."""
    shown = (("authorization", f"Bearer {token}"),) if token else None
    request = gcs_service_pb2.GetClusterIdRequest()  # pyrefly: ignore[missing-attribute]  # made on import
    with grpc.insecure_channel(address) as channel:
        nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            nodes.GetClusterId(request, metadata=shown, timeout=_ANSWER_S)
        except grpc.RpcError as error:
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True


def _children_but(others: Sequence[psutil.Process]) -> list[psutil.Process]:
    """Return what this process has started besides those others."""
    return [process for process in psutil.Process().children() if process not in others]


def _end(roots: Sequence[psutil.Process]) -> None:
    """Leave Ray; what it has started and does not end at once is killed: nobody else does."""
    started = list(roots)
    for process in roots:
        with suppress(psutil.Error):
            started += process.children(recursive=True)
    ray.shutdown()
    left = psutil.wait_procs(started, timeout=_ENDING_S)[1]
    for process in left:
        with suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=_ENDING_S)


def _set_environment(settings: dict[str, str]) -> None:
    """Set what Ray reads as it starts, where the user has not."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)
