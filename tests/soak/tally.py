"""What runs of `rlpost chaos` have been through, counted from the files that they leave."""

import json
from collections import Counter
from dataclasses import dataclass

OUTCOMES = ("planned", "carried_out", "missed", "not_reached")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Faults by kind and outcome, losses, and how long each took to be made up for.

    A fault is missed if it could not be done to its actor, and not reached if the run ended before
    its moment. `accuracy` is that of the last evaluation.
    """

    faults: Counter[tuple[str, str]]
    num_lost: int
    back_s: tuple[float, ...]
    accuracy: float | None = None

    def __add__(self, other):
        return Tally(
            faults=self.faults + other.faults,
            num_lost=self.num_lost + other.num_lost,
            back_s=self.back_s + other.back_s,
        )

    def as_json(self):
        """Return the tally as a report has it."""
        kinds = sorted({kind for kind, _ in self.faults})
        table = {
            kind: {outcome: self.faults[kind, outcome] for outcome in OUTCOMES} for kind in kinds
        }
        return {
            "faults": table,
            "lost": self.num_lost,
            "back": len(self.back_s),
            "back_s_mean": round(sum(self.back_s) / len(self.back_s), 1) if self.back_s else None,
            "back_s_max": max(self.back_s, default=None),
            "accuracy": self.accuracy,
        }


def read_tally(folder, planned):
    """Return what a run's own files say of the faults that were planned for it."""
    incidents = events(folder / "incidents.jsonl")
    accuracy = [
        value
        for line in events(folder / "metrics.jsonl")
        for name, value in line.items()
        if name.startswith("eval/") and name.endswith("/pass@1")
    ]
    return Tally(
        faults=outcomes(planned, events(folder / "chaos.jsonl")),
        num_lost=sum(one["event"] == "lost" for one in incidents),
        back_s=tuple(one["after_s"] for one in incidents if one["event"] == "back"),
        accuracy=accuracy[-1] if accuracy else None,
    )


def outcomes(planned, noted):
    """Count faults; a run notes each as it strikes, and once more where that was in vain."""
    plan = Counter(fault.kind for fault in planned)
    missed = Counter(one["kind"] for one in noted if "missed" in one)
    struck = Counter(one["kind"] for one in noted if "missed" not in one)
    table = {
        "planned": plan,
        "carried_out": struck - missed,
        "missed": missed,
        "not_reached": plan - struck,
    }
    return Counter(
        {
            (kind, outcome): count
            for outcome, counts in table.items()
            for kind, count in counts.items()
        }
    )


def events(path):
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def as_text(tally):
    """Return a tally as a table to print."""
    told = tally.as_json()
    rows = [("", *(name.replace("_", " ") for name in OUTCOMES))]
    rows += [(kind, *counts.values()) for kind, counts in told["faults"].items()]
    sums = [sum(n for (_, o), n in tally.faults.items() if o == outcome) for outcome in OUTCOMES]
    rows.append(("all", *sums))
    lines = [f"{row[0]:<14}" + "".join(f"{cell:>13}" for cell in row[1:]) for row in rows]
    lines.append(f"{told['lost']} actors lost, {told['back']} times one was back")
    if tally.back_s:
        lines[-1] += f", after {told['back_s_mean']} s on average, {told['back_s_max']} s at most"
    return "\n".join(lines)
