"""Writes `docs/results.md` from `benchmarks/results/*.json`: figures by benchmark and machine.

A result is an object with `benchmark` (the command), `machine`, `commit`, `date`, `note`, and
`figures`: by name, an object of numbers by measure, which names its unit.

    python tools/results_page.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "results.md"

KEYS = {"benchmark", "machine", "commit", "date", "note", "figures"}

_HEAD = """\
# Results of benchmarks

Written by `make results-page` from `benchmarks/results/*.json`: add a file there, and do not change
this page. Each result is of one machine and one commit. RMSPE is the root mean square of relative
errors, τ Kendall's rank correlation.
"""


def page(folder: Path = RESULTS) -> str:
    """The page, as it ought to lie in the docs, of the results in a folder."""
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    results.sort(key=lambda result: (result["benchmark"], result["machine"], result["date"]))
    return "\n".join([_HEAD, *(_section(result) for result in results)])


def _section(result: dict[str, Any]) -> str:
    """One result."""
    if result.keys() != KEYS:
        raise ValueError(f"a result has {', '.join(sorted(KEYS))}, not {', '.join(result)}")
    measures = list(dict.fromkeys(name for row in result["figures"].values() for name in row))
    rows = [
        f"| {name} | {' | '.join(_words(row.get(measure)) for measure in measures)} |"
        for name, row in result["figures"].items()
    ]
    return "\n".join(
        [
            f"## `{result['benchmark']}`",
            "",
            f"{result['machine']}; commit {result['commit']}, {result['date']}. {result['note']}",
            "",
            f"| | {' | '.join(measures)} |",
            f"|---|{'---|' * len(measures)}",
            *rows,
            "",
        ]
    )


def _words(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


if __name__ == "__main__":
    PAGE.write_text(page())
