"""The state of this process's random number generators, as JSON."""

import base64
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """Return the state of Python's, NumPy's and torch's generators, CUDA's where there is one."""
    version, words, gauss = random.getstate()
    # A user's code may draw from NumPy's global generator.
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 - that very one
    inner = numpy_state["state"]
    return {
        "python": [version, list(words), gauss],
        "numpy": {**numpy_state, "state": {"key": inner["key"].tolist(), "pos": int(inner["pos"])}},
        "torch": _text(torch.get_rng_state()),
        "cuda": [_text(state) for state in torch.cuda.get_rng_state_all()],
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put all generators into a state that `rng_state` returned."""
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    inner = state["numpy"]["state"]
    key = np.array(inner["key"], dtype=np.uint32)
    inner = {"key": key, "pos": inner["pos"]}
    np.random.set_state({**state["numpy"], "state": inner})  # noqa: NPY002 - as above
    torch.set_rng_state(_tensor(state["torch"]))
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([_tensor(text) for text in state["cuda"]])


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(bytes(state.tolist())).decode()


def _tensor(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
