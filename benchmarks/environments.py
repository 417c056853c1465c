"""Which runtimes can share one environment of an agent?

Makes a new environment for each group of extras, installs the project with them from its folder,
and asks `agent info` which targets are available there. What pip cannot bring together is told
with the first line of what it says. Needs an index of packages and some GB of disk, one
environment after the other.

    python benchmarks/environments.py --json
    python benchmarks/environments.py --python python3.9 --group tflite-runtime,onnxruntime --json
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GROUPS = (
    "onnxruntime,openvino,litert,ethosu,qnn,simulated",
    "tflite-runtime,onnxruntime,openvino,ethosu,simulated",
    "tflite-runtime,qnn",
    "tflite-runtime,litert",
)


def tried(python: str, extras: str) -> dict[str, Any]:
    """What an environment with these extras has."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([python, "-m", "venv", folder], check=True)
        binary = Path(folder) / "bin"
        installed = subprocess.run(
            [binary / "python", "-m", "pip", "install", "--quiet", f"{ROOT}[{extras}]"],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode:
            said = [line for line in installed.stderr.splitlines() if line.startswith("ERROR")]
            return {"extras": extras, "resolves": False, "pip": said[:2]}
        told = subprocess.run(
            [binary / "agent", "info", "--json"], capture_output=True, text=True, check=True
        )
        targets = json.loads(told.stdout)["targets"]
        versions = subprocess.run(
            [binary / "python", "-c", "import numpy, sys; print(numpy.__version__)"],
            capture_output=True,
            text=True,
            check=True,
        )
    return {
        "extras": extras,
        "resolves": True,
        "numpy": versions.stdout.strip(),
        "targets": {
            t["name"]: f"{t['availability']} {t['runtime']} {t['runtime_version']}"
            for t in targets
            if t["availability"] != "unavailable"
        },
        "reasons": {t["name"]: t["reason"] for t in targets if t["availability"] == "unavailable"},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default="python3.11")
    parser.add_argument("--group", action="append", help="extras with commas between [some]")
    parser.add_argument("--json", action="store_true", help="print only the JSON object")
    arguments = parser.parse_args()
    groups = arguments.group or GROUPS
    found = [tried(arguments.python, extras) for extras in groups]
    print(json.dumps({"python": arguments.python, "environments": found}))


if __name__ == "__main__":
    main()
