"""Pictures of objectives: loss and gradient multiplier over the ratio, token shares over p."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from rlpost.objective_configs import objective_label
from rlpost.objectives import Objective, ObjectiveInputs, build
from rlpost.objectives.holder import Holder
from rlpost.objectives.holder_mean import token_shares
from rlpost.reporting.canvas import frame, pyplot, save, styles
from rlpost.reporting.comparison_page import Curve

_LARGEST = 2.5
_TOKENS = (-1.0, -0.5, 0.0, 0.5, 1.0)
"""Log-ratios of the sequence whose shares are drawn."""
_MOST_BANDS = 6  # more intervals than these hide each other


def plot_objectives(names: Sequence[str], folder: Path) -> list[Path]:
    """Draw objectives into `folder/objectives.svg` and `.png`; return both paths.

    A name is `mhpo` or, with hyperparameters, `mhpo:c=2.5:dhp=false`. A sequence's control is drawn
    for a sequence whose tokens all have one log-ratio.

    Raises:
        ConfigError: there is no such objective or hyperparameter, or matplotlib is missing.
    """
    plt = pyplot()
    objectives = {name: named(name) for name in names}
    mean_controls = [name for name, one in objectives.items() if isinstance(one, Holder)]
    look = styles(names)
    num_rows = 3 if mean_controls else 2
    figure, axes = plt.subplots(num_rows, 2, figsize=(10, 3.4 * num_rows), layout="constrained")
    for column, sign in enumerate((1.0, -1.0)):
        advantage = "A = +1" if sign > 0 else "A = -1"
        for name, objective in objectives.items():
            log_ratio, loss, multiplier = _curves(objective, sign)
            for row, values in enumerate((loss, multiplier)):
                axes[row][column].plot(log_ratio, values, label=name, **look[name])
        axes[0][column].set_title(f"loss of a token, {advantage}")
        axes[1][column].set_title(f"gradient multiplier M, {advantage}")
        for row in (0, 1):
            frame(axes[row][column], "log r = logprob - old logprob")
        # Unbounded controls leave the picture, so that the bounded ones can be told apart.
        axes[0][column].set_ylim(*sorted((-sign * 4.0, sign * 1.0)))
        axes[1][column].set_ylim(-0.1, 4.0)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    if mean_controls:
        _draw_shares(axes[2], objectives, mean_controls)
    return save(figure, folder / "objectives")


def plot_curves(curves: Mapping[str, Mapping[str, Curve]], folder: Path) -> list[Path]:
    """Draw runs' curves by label and title into `folder/curves.svg` and `.png`; return both paths.

    Raises:
        ConfigError: matplotlib is missing.
    """
    figure, axes = pyplot().subplots(3, 2, figsize=(10, 11), layout="constrained")
    look = styles(list(curves))
    for label, by_title in curves.items():
        for axis, (title, curve) in zip(axes.flat, by_title.items(), strict=True):
            axis.set_title(title)
            (line,) = axis.plot(curve.steps, curve.mean, label=label, **look[label])
            if len(curves) <= _MOST_BANDS:
                low, high = curve.mean - curve.half_width, curve.mean + curve.half_width
                axis.fill_between(curve.steps, low, high, color=line.get_color(), alpha=0.12)
            if title == "largest ratio":
                axis.set_yscale("log")
    for axis in axes.flat:
        frame(axis, "step", centre=None)
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return save(figure, folder / "curves")


def plot_accuracy(curves: Mapping[str, Curve], folder: Path) -> list[Path]:
    """Draw each label's last accuracy into `folder/accuracy.svg` and `.png`; return both paths.

    A point is a seed, a bar the mean with its confidence interval, the line the mean at the start.

    Raises:
        ConfigError: matplotlib is missing.
    """
    height = 1.2 + 0.32 * len(curves)
    figure, axis = pyplot().subplots(figsize=(8, height), layout="constrained")
    for row, curve in enumerate(curves.values()):
        axis.plot(curve.last, [row] * len(curve.last), "o", color="C0", alpha=0.35, markersize=4)
        axis.errorbar(
            curve.mean[-1], row, xerr=curve.half_width[-1:], fmt="|", color="C3", capsize=3
        )
    start = sum(float(curve.mean[0]) for curve in curves.values()) / len(curves)
    axis.axvline(start, color="black", linewidth=0.6, linestyle=(0, (4, 3)))
    axis.set_yticks(range(len(curves)), list(curves))
    axis.invert_yaxis()
    axis.set_xlabel("held-out accuracy after the last step; dashed: at the start")
    axis.grid(axis="x", alpha=0.3)
    return save(figure, folder / "accuracy")


def named(text: str) -> Objective[Any]:
    """Return the objective that a label describes."""
    name, settings = objective_label(text)
    given = OmegaConf.from_dotlist(settings)
    return build(name, **{str(key): given[key] for key in given})


def _curves(
    objective: Objective[Any], sign: float, num_points: int = 601
) -> tuple[list[float], list[float], list[float]]:
    """Return log-ratios, and the loss and the gradient multiplier of a token at each."""
    log_ratio = torch.linspace(-_LARGEST, _LARGEST, num_points, dtype=torch.float64)[:, None]
    everywhere = torch.ones_like(log_ratio)
    inputs = ObjectiveInputs(
        logprobs=log_ratio,
        old_logprobs=torch.zeros_like(log_ratio),
        advantages=sign * everywhere,
        loss_mask=everywhere.bool(),
        weights=everywhere,
    )
    values = objective.at_step(0)
    loss = objective.terms(inputs, values)
    multiplier = objective.multiplier(inputs, values)
    columns = (log_ratio, loss.expand_as(log_ratio), multiplier)
    x, height, slope = (column[:, 0].tolist() for column in columns)
    return x, height, slope


def _draw_shares(axes: Any, objectives: dict[str, Objective[Any]], names: list[str]) -> None:
    """Draw shares over p, and p over training."""
    log_ratio = torch.tensor([_TOKENS], dtype=torch.float64)
    mask = torch.ones_like(log_ratio, dtype=torch.bool)
    exponents = torch.linspace(-4, 4, 161, dtype=torch.float64).tolist()
    shares = [token_shares(log_ratio, mask, p)[0].tolist() for p in exponents]
    for index, token in enumerate(_TOKENS):
        axes[0].plot(exponents, [row[index] for row in shares], label=f"log r = {token:+.1f}")
    axes[0].set_title("Hölder mean: a token's share in its sequence's gradient")
    frame(axes[0], "p", centre=0.0)
    axes[0].legend(fontsize="small", loc="center right")
    progress = [i / 100 for i in range(101)]
    for name in names:
        axes[1].plot(progress, [objectives[name].at_step(0, x)["p"] for x in progress], label=name)
    axes[1].set_title("p over training")
    frame(axes[1], "progress = step / schedule_steps")
    axes[1].legend(fontsize="small", loc="upper right")
