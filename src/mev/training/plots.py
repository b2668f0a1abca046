"""Plots of a training, as PNG and SVG files."""

from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mev.core.files import write_atomically
from mev.training.metrics import Curves, Numbers

_LAMPORTS = 1e9
_SHOWN = 20


def learning(path: Path, name: str, history: Sequence[float], best: int) -> None:
    """Draw the validation metric by round."""

    def draw(axes: Axes) -> None:
        axes.plot(np.arange(1, len(history) + 1), history)
        axes.axvline(best, linestyle=":", color="grey", label=f"best: round {best}")
        axes.set(title="Validation by round", xlabel="round", ylabel=name)
        axes.legend()

    _save(path, draw)


def importance(path: Path, values: Mapping[str, float]) -> None:
    """Draw the mean contribution of each feature."""
    most = sorted(values.items(), key=lambda item: item[1])[-_SHOWN:]

    def draw(axes: Axes) -> None:
        axes.barh([name for name, _ in most], [value for _, value in most])
        axes.set(title="What moves the score", xlabel="mean |contribution| to the margin")

    _save(path, draw)


def binary(folder: Path, figures: Mapping[str, float], curves: Curves) -> None:
    """Draw ROC, precision-recall and calibration curves, and profit by threshold where known."""

    def roc(axes: Axes) -> None:
        axes.plot(*curves.roc, label=f"AUC {figures['auc']:.3f}")
        axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="by chance")
        axes.set(title="ROC", xlabel="false positive rate", ylabel="true positive rate")
        axes.legend(loc="lower right")

    def precision(axes: Axes) -> None:
        axes.plot(*curves.precision_recall, label=f"PR-AUC {figures['pr_auc']:.3f}")
        axes.axhline(figures["base_rate"], linestyle=":", color="grey", label="by chance")
        axes.set(title="Precision by recall", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
        axes.legend(loc="lower left")

    def calibration(axes: Axes) -> None:
        axes.plot(
            *curves.calibration, marker="o", label=f"error {figures['calibration_error']:.3f}"
        )
        axes.plot([0, 1], [0, 1], linestyle=":", color="grey", label="as it should be")
        axes.set(title="Calibration", xlabel="predicted", ylabel="observed")
        axes.legend(loc="upper left")

    _save(folder / "roc.png", roc)
    _save(folder / "precision_recall.png", precision)
    _save(folder / "calibration.png", calibration)
    if curves.profit is not None:
        _save(folder / "profit.png", _profit(*curves.profit, figures["best_threshold"]))


def _profit(thresholds: Numbers, lamports: Numbers, best: float) -> Callable[[Axes], None]:
    def draw(axes: Axes) -> None:
        axes.plot(thresholds, lamports / _LAMPORTS)
        axes.axvline(best, linestyle=":", color="grey", label=f"best: {best:.3f}")
        axes.set(
            title="Profit of all that score at least the threshold",
            xlabel="threshold",
            ylabel="SOL",
        )
        axes.legend()

    return draw


def _save(path: Path, draw: Callable[[Axes], None]) -> None:
    # not by pyplot, which would retain it
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    draw(axes)
    png, svg = BytesIO(), BytesIO()
    figure.savefig(png, dpi=110, format="png")
    figure.set_layout_engine("none")  # the places of the first file; to find them takes most time
    # the fixed salt and no date make the file deterministic
    with mpl.rc_context({"svg.hashsalt": path.stem}):
        figure.savefig(svg, format="svg", metadata={"Date": None})
    write_atomically(path, png.getvalue())
    write_atomically(path.with_suffix(".svg"), svg.getvalue())
