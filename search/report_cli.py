"""`hurricane report`: the HTML pages of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from ..agents.console import emit, json_option
from ..ops.atomic import write_atomically
from ..ops.errors import BadRequest
from .front_report import Front, is_front, render_fronts
from .report import BASELINE, NetworkFigures, Run, gather_run, render_report


def find_runs(paths: Sequence[Path]) -> list[Path]:
    """The runs that are meant: a run's directory itself, or all runs in a directory of runs.

    Raises:
        BadRequest: a path is no directory, or there is no run in it.
    """
    found: list[Path] = []
    for path in paths:
        if (path / "config.json").exists():
            found.append(path)
            continue
        if not path.is_dir():
            raise BadRequest(f"{path} is not a run's directory: there is no such folder")
        inside = sorted(
            p for p in path.iterdir() if (p / "config.json").exists() and p.name != BASELINE
        )
        if not inside:
            raise BadRequest(f"{path} holds no run: it has no config.json, nor has a folder in it")
        found += inside
    return list(dict.fromkeys(found))


_HELP = """Writes one HTML page about a run, or several runs side by side.

A folder of runs means all runs in it. The page needs no network and no scripts.

\b
Examples:
  hurricane report runs/mine
  hurricane report runs/demo -o demo.html
  hurricane report runs/cpu runs/dsp -o both.html --title 'CPU and DSP'
"""


@click.command("report", help=_HELP)
@click.argument("folders", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Page to write [report.html in the folder, if there is only one].",
)
@click.option("--title", help="Title of the page [the folders' names].")
@json_option
def report_command(
    folders: tuple[Path, ...], output: Path | None, title: str | None, as_json: bool
) -> None:
    paths = find_runs(folders)
    if output is None:
        first, *others = folders
        if others:
            raise BadRequest("several folders are named: name the page with -o FILE")
        output = first / "report.html"
    named = title or "Hurricane: " + ", ".join(folder.resolve().name for folder in folders)
    several = [is_front(path) for path in paths]
    if any(several) and not all(several):
        raise BadRequest(
            "searches for one budget and for several have different pages: name those of one kind"
        )
    if all(several):
        fronts = [Front.read(path) for path in paths]
        write_atomically(output, render_fronts(fronts, named).encode(), make_folder=True)
        points = {str(f.folder): [str(p.file) for p in f.points] for f in fronts}
        emit(
            {"output": str(output), "points": points}, as_json, f"{output}: {len(fronts)} front(s)"
        )
        return
    runs = [gather_run(path) for path in paths]
    write_atomically(output, render_report(runs, named).encode(), make_folder=True)
    result = {"output": str(output), "runs": [_summary(run) for run in runs]}
    gaps = [f"  left out: {gap}" for run in runs for gap in run.gaps.values()]
    emit(result, as_json, "\n".join([f"{output}: {len(runs)} run(s)", *gaps]))


def _summary(run: Run) -> dict[str, Any]:
    winner, baseline = run.winner, run.baseline

    def figures(network: NetworkFigures | None) -> dict[str, Any] | None:
        return network and {
            "operators": list(network.operators),
            "predicted_ms": network.predicted_ms,
            "predicted_interval_ms": network.predicted_interval_ms,
            f"{run.whole_word}_ms": network.whole_ms,
            "test_accuracy": network.test.value if network.test else None,
            "accuracy": [figure.to_dict() for figure in network.accuracy],
            "artifact_accuracy": network.artifact.to_dict() if network.artifact else None,
        }

    return {
        "folder": str(run.folder),
        "target": run.target_name,
        "origin": run.origin,
        "budget_ms": run.budget_ms,
        "statistic": run.statistic,
        "winner": figures(winner),
        "baseline": figures(baseline),
        "comparison": run.comparison.to_dict() if run.comparison else None,
        "gaps": dict(run.gaps),
    }
