"""`rlpost report`: a page on one run or several, from nothing but their directories."""

import json
import time
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from rlpost.atomic import write_text
from rlpost.errors import ConfigError
from rlpost.reporting.record import ACCURACY, Record, differences, records
from rlpost.reporting.report_pictures import legend, pictures, time_picture

_MOST_INCIDENTS = 100
_MOST_CHARACTERS = 2000  # of a prompt or a response


def report(words: Sequence[str]) -> Path:
    """Write the page that a command line asks for, and return its path.

    Raises:
        ConfigError: no run is named, or several and no file to write to.
        DataError: a folder is no run directory.
    """
    outs = [word.removeprefix("out=") for word in words if word.startswith("out=")]
    folders = [Path(word) for word in words if not word.startswith("out=")]
    if not folders:
        raise ConfigError("rlpost report needs a run directory: rlpost report runs/NAME")
    if len(folders) > 1 and not outs:
        raise ConfigError(
            f"a page on {len(folders)} runs belongs to none of them: say where it goes with "
            "out=FILE.html"
        )
    path = Path(outs[-1]) if outs else folders[0] / "report.html"
    write_text(path, page(records(folders)))
    return path


def page(shown: Sequence[Record]) -> str:
    """Return a whole HTML page, which loads nothing."""
    title = shown[0].name if len(shown) == 1 else f"{len(shown)} runs"
    body = "\n".join(_body(shown))
    style = files("rlpost.reporting").joinpath("report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _body(shown: Sequence[Record]) -> Iterator[str]:
    written = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    yield f'<p class="note">Read from the run directories on {written}; rlpost report</p>'
    colours = dict(legend(shown)) if len(shown) > 1 else {}
    keys = {n: f'<span class="key" style="background:{c}"></span>' for n, c in colours.items()}
    facts = [_facts(record) for record in shown]
    yield _table(
        ["", *(keys.get(record.name, "") + escape(record.name) for record in shown)],
        [[name, *(escape(fact[name]) for fact in facts)] for name in facts[0]],
    )
    if changed := differences(shown):
        yield "<h2>What differs between their recipes</h2>"
        rows = [[escape(field), *map(_value, values)] for field, values in changed.items()]
        yield _table(["field", *(escape(record.name) for record in shown)], rows)
    yield '<h2>Curves</h2>\n<div class="grid">'
    for title, metric, svg in pictures(shown):
        caption = f"{escape(title)} <code>{escape(metric)}</code>"
        yield f"<figure><figcaption>{caption}</figcaption>{svg}</figure>"
    yield "</div>"
    for record in shown:
        yield from _sections(record, f" of {record.name}" if len(shown) > 1 else "")


def _facts(record: Record) -> dict[str, str]:
    """Return what one wants to know first of a run, as text."""
    config = record.config
    done, asked = record.lines[-1]["step"], config["steps"]
    seconds = record.lines[-1]["unix_s"] - record.lines[0]["unix_s"]
    _, accuracy = record.series(ACCURACY)
    _, rewards = record.series("reward/mean")
    samples = done * config["prompts_per_step"] * config["group_size"]
    step_s, lost = record.median("time/step_s"), record.series("faults/lost")[1]
    return {
        "task, objective, seed": (
            f"{config['task.name']}, {config['objective.name']}, {config['seed']}"
        ),
        "steps": f"{done} of {asked}" + ("" if done == asked else ": unfinished"),
        "held-out accuracy, first, best, last": (
            f"{accuracy[0]:.1%}, {max(accuracy):.1%}, {accuracy[-1]:.1%}" if accuracy else "-"
        ),
        "reward, first and last step": (f"{rewards[0]:.3f}, {rewards[-1]:.3f}" if rewards else "-"),
        "samples, tokens trained": f"{samples:,}, {record.total('tokens/trained'):,.0f}",
        "wall time, median step": (
            f"{_duration(seconds)}, {step_s:.2f} s" if step_s is not None else "-"
        ),
        "actors lost": f"{lost[-1]:.0f}" if lost else "-",
    }


def _duration(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _sections(record: Record, whose: str) -> Iterator[str]:
    if any(record.phases().values()):
        yield f"<h2>Where the time{escape(whose)} went</h2>"
        yield f"<figure>{time_picture(record)}</figure>"
    if record.incidents:
        yield f"<h2>Incidents{escape(whose)}</h2>"
        yield _incidents(record)
    examples = list(record.rollouts())
    if examples:
        yield f"<h2>Responses{escape(whose)}</h2>"
        yield '<p class="note">The best, the median and the worst by reward, of a few steps</p>'
        yield _table(
            ["step", "reward", "prompt", "response", "answer", "end"],
            [_response(step, row) for step, rows in examples for row in _chosen(rows)],
        )
    yield f"<h2>Recipe{escape(whose)}</h2>\n<details><summary>config.yaml</summary>"
    text = (record.folder / "config.yaml").read_text(encoding="utf-8")
    yield f"<pre>{escape(text)}</pre></details>"


def _incidents(record: Record) -> str:
    start = record.lines[0]["unix_s"]
    rows = [
        [
            f"{(one['unix_s'] - start) / 60:.1f}",
            escape(one["event"]),
            f'<span class="name">{escape(one["actor"])}</span>',
            escape(one.get("cause") or f"after {one.get('after_s', 0.0):.1f} s"),
        ]
        for one in record.incidents[:_MOST_INCIDENTS]
    ]
    left = len(record.incidents) - len(rows)
    more = f'<p class="note">and {left} more in incidents.jsonl</p>' if left > 0 else ""
    return _table(["minute", "event", "actor", "cause"], rows) + more


def _chosen(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the best, the median and the worst of the responses that have a reward."""
    ranked = sorted((row for row in rows if row["reward"] is not None), key=lambda r: -r["reward"])
    if not ranked:
        return []
    positions = dict.fromkeys((0, len(ranked) // 2, len(ranked) - 1))
    return [ranked[position] for position in positions]


def _response(step: int, row: dict[str, Any]) -> list[str]:
    texts = (f"<pre>{_cut(row[name])}</pre>" for name in ("prompt", "response", "answer"))
    end = row["finish_reason"] + (f"; dropped: {row['dropped']}" if row["dropped"] else "")
    return [str(step), f"{row['reward']:.3g}", *texts, escape(end)]


def _cut(text: str | None) -> str:
    text = text or ""
    left = len(text) - _MOST_CHARACTERS
    return escape(text[:_MOST_CHARACTERS]) + (f" … and {left} characters more" * (left > 0))


def _value(value: Any) -> str:
    return escape(json.dumps(value, ensure_ascii=False))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; its cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>\n" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table>"
