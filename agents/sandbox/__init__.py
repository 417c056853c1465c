"""The sandbox of a worker process: what a runtime that an uploaded graph has taken over can reach.

`enter` closes it, with whatever means the kernel has; `Isolation` says which of them are on.
Only the standard library is imported here: Landlock holds for threads that are started after it,
and runtimes start theirs when they are imported.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import BadRequest, Internal
from . import landlock, seccomp
from .kernel import PR_SET_DUMPABLE, prctl
from .needs import Needs as Needs

try:
    import resource
except ImportError:  # not on Windows
    resource = None

_MAX_FILES = 1024  # open at once
_MAX_CPU_S = 24 * 3600  # of all threads over the worker's life; wall time is limited by its parent
_SPARE_PROCESSES = 512  # beyond those of the machine when the worker starts
# Shared libraries, and what their loader, time zones and the C library's locale need.
_SYSTEM = (
    "/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/local/lib",
    "/usr/share/locale", "/usr/share/zoneinfo", "/etc/ld.so.cache", "/etc/localtime",
    "/system/lib", "/system/lib64", "/system/vendor/lib", "/system/vendor/lib64",
    "/vendor/lib", "/vendor/lib64", "/apex", "/nix/store", "/gnu/store",
)  # fmt: skip
# What runtimes and `conditions` ask about the machine. Of other processes there is nothing here.
_MACHINE = (
    "/proc/self", "/proc/cpuinfo", "/proc/loadavg", "/proc/meminfo", "/proc/stat",
    "/proc/uptime", "/proc/version", "/proc/vmstat", "/proc/sys/kernel", "/proc/sys/vm",
    "/sys/class/hwmon", "/sys/class/thermal", "/sys/devices", "/sys/fs/cgroup",
    "/sys/kernel/mm",
)  # fmt: skip
_RANDOM = ("/dev/random", "/dev/urandom", "/dev/zero")
_NULL = ("/dev/null",)
_REFUSALS = (errno.EACCES, errno.EPERM, errno.EFBIG)


@dataclass(frozen=True)
class Isolation:
    """What keeps a worker in.

    Args:
        means: those that are on.
        missing: what this system does not offer, and what is open because of that.
    """

    means: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


def become(user: str) -> None:
    """Gives up this process's own user for another, for good.

    Args:
        user: its name; empty: nothing is done.

    Raises:
        BadRequest: it cannot be that user, or that user cannot read Python and the agent.
    """
    if not user:
        return
    import pwd

    try:
        account = pwd.getpwnam(user)
        os.setgroups(os.getgrouplist(user, account.pw_gid))
        os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
        os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
    except (KeyError, OSError) as error:
        raise BadRequest(f"graphs cannot be run as user '{user}': {error}") from error
    with contextlib.suppress(OSError):
        prctl(PR_SET_DUMPABLE, 1)  # else what /proc tells of this process is root's
    for file in (os.__file__, __file__):
        if not os.access(file, os.R_OK):
            raise BadRequest(
                f"user '{user}' cannot read {file}; install Python and the agent where that user "
                "can"
            )


def enter(needs: Needs, modules: Iterable[str] = ()) -> Isolation:
    """Closes the sandbox around this process, for good.

    Args:
        needs: of the backend.
        modules: files or folders of Python code beside ``sys.path`` that are still to be read.

    Raises:
        Internal: the process has started threads already, which would stay outside.
    """
    threads = _thread_count()
    if threads > 1:
        raise Internal(
            f"{threads - 1} threads run before the sandbox is closed: a backend must import its "
            "runtime in targets() and open_target(), not when it is imported itself"
        )
    means, missing = _limit_resources(needs)
    scratch = []
    if needs.scratch_bytes:
        scratch = [os.getcwd()]
        os.chmod(scratch[0], 0o700)
    abi = landlock.abi()
    try:
        if not abi:
            raise OSError(errno.ENOSYS, "the kernel has none")
        landlock.restrict(
            abi,
            read=[*_SYSTEM, *_MACHINE, *_RANDOM, *_libraries(), *modules, *needs.read],
            write=[*_NULL, *needs.write, *scratch],
            execute=needs.processes,
            network=needs.network,
        )
        means.append(f"landlock (ABI {abi})")
    except OSError as error:
        missing.append(
            f"landlock ({error.strerror}): files that this user can read are open to a hostile "
            "graph; agent serve --user helps"
        )
    try:
        seccomp.restrict(needs)
        means.append("seccomp")
    except OSError as error:
        missing.append(
            f"seccomp ({error.strerror}): sockets and processes are open to a hostile graph"
        )
    return Isolation(tuple(means), tuple(missing))


def advice(error: BaseException) -> str:
    """What to add to the words of an error that the sandbox may have made; else empty."""
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        return " (the agent's sandbox? what a backend needs stands in its NEEDS)"
    return ""


def limit_memory(limit_bytes: int) -> None:
    """Allows this process so much address space beyond what it has now."""
    if resource is None:
        return
    with contextlib.suppress(OSError, ValueError, IndexError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * os.sysconf("SC_PAGE_SIZE") + limit_bytes
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        if hard == resource.RLIM_INFINITY or limit < hard:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _limit_resources(needs: Needs) -> tuple[list[str], list[str]]:
    if resource is None:
        return [], ["resource limits: memory, files and processes are not limited"]
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: max(needs.file_bytes, needs.scratch_bytes),
        resource.RLIMIT_NOFILE: _MAX_FILES,
        resource.RLIMIT_CPU: _MAX_CPU_S,
        # Counts the threads of all processes of the user, but for root, who has no such limit.
        resource.RLIMIT_NPROC: _running_threads() + _SPARE_PROCESSES,
    }
    for kind, limit in limits.items():
        _, hard = resource.getrlimit(kind)
        if hard != resource.RLIM_INFINITY:
            limit = min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    return ["resource limits"], []


def _libraries() -> Iterator[str]:
    """Folders of Python code and of shared libraries that this process uses.

    Folders that hold a home folder, or are one, are left out: they hold more than code.
    """
    paths = sysconfig.get_paths()
    found = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [os.path.join(sys.base_prefix, "lib"), *sys.path]
    found += os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep)
    found.append(str(Path(__file__).resolve().parent.parent))
    home = _home()
    for path in found:
        if os.path.isabs(path) and not f"{home}/".startswith(f"{os.path.realpath(path)}/"):
            yield path


def _home() -> str:
    # Not of the environment, which is this process's own.
    with contextlib.suppress(ImportError, KeyError):
        import pwd

        return os.path.realpath(pwd.getpwuid(os.getuid()).pw_dir)
    return "/"


def _thread_count() -> int:
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def _running_threads() -> int:
    """Threads of all processes of this machine."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/loadavg").read_text().split()[3].partition("/")[2])
    return 4096
