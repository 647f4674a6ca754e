"""The pictures of a report: metrics over steps, and where each step's time went."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rlpost.reporting.canvas import as_svg, frame, pyplot, styles
from rlpost.reporting.record import ACCURACY, Record


@dataclass(frozen=True, slots=True)
class Panel:
    """A metric's picture: its title, and whether its axis is logarithmic."""

    title: str
    metric: str
    log: bool = False


PANELS = (
    Panel("held-out accuracy", ACCURACY),
    Panel("reward", "reward/mean"),
    Panel("response length (tokens)", "response/length_mean"),
    Panel("truncated responses (share)", "response/truncated_frac"),
    Panel("groups without signal (share)", "group/zero_advantage_frac"),
    Panel("entropy (nats a token)", "policy/entropy"),
    Panel("KL from the step's first policy (nats a token)", "policy/kl_old"),
    Panel("KL from the reference (nats a token)", "policy/kl_ref"),
    Panel("gradient norm", "policy/grad_norm"),
    Panel("largest ratio", "policy/ratio_max", log=True),
    Panel("controlled tokens (share)", "policy/ratio_controlled_frac"),
    Panel("learner - vLLM, mean |difference| (nats)", "mismatch/logprob_gap_mean", log=True),
    Panel("staleness, oldest token (versions)", "staleness/max"),
    Panel("tokens trained / s", "throughput/tokens_per_s"),
)


def pictures(shown: Sequence[Record]) -> Iterator[tuple[str, str, str]]:
    """Yield each panel that has something to show: its title, its metric, and its SVG.

    Raises:
        ConfigError: matplotlib is missing.
    """
    look = styles([record.name for record in shown])
    for panel in PANELS:
        series = {record.name: record.series(panel.metric) for record in shown}
        values = [value for _, recorded in series.values() for value in recorded]
        if not any(values):  # nothing recorded, or a thing that never happened
            continue
        figure, axis = pyplot().subplots(figsize=(4.6, 2.7), layout="constrained")
        for name, (steps, recorded) in series.items():
            mark = "." if len(steps) < 25 else None
            axis.plot(steps, recorded, label=name, marker=mark, linewidth=1.2, **look[name])
        if panel.log and min(values) > 0:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("{x:.2g}" if max(values) < 10 * min(values) else "")
        frame(axis, "step", centre=None)
        axis.xaxis.get_major_locator().set_params(integer=True)
        yield panel.title, panel.metric, as_svg(figure)


def legend(shown: Sequence[Record]) -> list[tuple[str, str]]:
    """Return each run's name and colour."""
    from matplotlib.colors import to_hex

    look = styles([record.name for record in shown])
    return [(record.name, to_hex(look[record.name]["color"])) for record in shown]


def time_picture(record: Record) -> str:
    """Return the SVG of the phases that each step's wall time is made of."""
    phases = record.phases()
    figure, axis = pyplot().subplots(figsize=(13, 3.2), layout="constrained")
    steps = [line["step"] for line in record.lines if line["step"] > 0]
    axis.stackplot(steps, *phases.values(), labels=list(phases), linewidth=0)
    handles, labels = axis.get_legend_handles_labels()
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.set_ylabel("seconds a step")
    axis.margins(x=0)
    frame(axis, "step", centre=None)
    axis.xaxis.get_major_locator().set_params(integer=True)
    return as_svg(figure)
