"""How the agent starts Python: with no module and no secret of the place it was started from."""

from __future__ import annotations

import json
import os
import site
import sys
from pathlib import Path

# What reaches a worker; anything else may hold a secret, or change what it runs.
_NAMES = ("PATH", "LD_LIBRARY_PATH", "ADSP_LIBRARY_PATH", "TZ", "OPENBLAS_CORETYPE")
# Of the agent's operator: for backends of their own, and for runtimes' thread pools.
_PREFIXES = ("ANDROID_ADB_", "HURRICANE_BACKEND_", "KMP_", "OMP_", "QNN_", "SNPE_")
_SETTINGS = {
    "LC_ALL": "C.UTF-8",
    # numpy would start threads when it is imported: nothing here computes with them.
    "OPENBLAS_NUM_THREADS": "1",
}
_START = (
    "import json, site, sys; sys.dont_write_bytecode = True; given = json.loads(sys.argv.pop(1)); "
    # Editable installations are found by what lies in these folders; what they add to the path
    # need be no folder, so whatever is there by now stays, behind the rest.
    "[site.addsitedir(folder) for folder in given['sites']]; "
    "sys.path[:] = dict.fromkeys([*given['path'], *sys.path]); "
    "from {module} import main; main()"
)


def python_command(module: str, *arguments: str) -> list[str]:
    """The command that calls `module.main()` in a new Python with this one's search path.

    The current folder is not searched, nor is anything read from PYTHON… variables: a file that
    happens to be called numpy.py must not be run.
    """
    sites = [site.getusersitepackages()] if site.ENABLE_USER_SITE else []
    given = json.dumps({"path": search_path(), "sites": sites})
    return [sys.executable, "-I", "-c", _START.format(module=module), given, *arguments]


def search_path() -> list[str]:
    """``sys.path`` without the current folder, and without the one of the program that runs.

    Unless it is where this package lies: then its neighbours are trusted as much.
    """
    left_out = {os.path.dirname(os.path.realpath((sys.argv or [""])[0])), _current_folder()}
    home = Path(__file__).resolve().parent.parent
    if home.name == "hurricane":
        left_out.discard(str(home.parent))
    return [
        path
        for path in dict.fromkeys(sys.path)
        if os.path.isabs(path) and os.path.realpath(path) not in left_out
    ]


def worker_environment(folder: str) -> dict[str, str]:
    """The environment of a worker.

    Args:
        folder: stands for its home and for temporary files.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in _NAMES or name.startswith(_PREFIXES)
    }
    return {**kept, **_SETTINGS, "HOME": folder, "TMPDIR": folder}


def _current_folder() -> str:
    try:
        return os.path.realpath(os.getcwd())
    except OSError:  # it was removed
        return ""
