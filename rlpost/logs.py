"""One set-up of logging for every process of a run."""

import logging

from rlpost.redaction import RedactingFormatter


def set_up(role: str, level: int = logging.INFO) -> None:
    """Send all log records to standard error, each with time and role, without secrets."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        RedactingFormatter(
            f"%(asctime)s {role} %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S"
        )
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for library in ("ray", "vllm", "transformers", "httpx", "filelock"):
        logging.getLogger(library).setLevel(logging.WARNING)
