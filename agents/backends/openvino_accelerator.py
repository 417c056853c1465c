"""Intel's GPU and NPU by OpenVINO: targets ``gpu-openvino-…`` and ``npu-openvino-…``.

A graph runs on the device that was asked for as a whole, or is refused: what OpenVINO's compiled
graph tells is read back. Written after OpenVINO 2026.4 and its documentation; of the devices it has
met none. `docs/intel-gpu-npu.md` says what was tried and how.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import BadRequest
from ..sandbox import Needs
from ._openvino import FORMATS, NO_NPU_COMPILER, OpenvinoSession, Placement, installed_version
from .base import (
    Availability,
    Context,
    TargetInfo,
    check_options,
    check_threads,
    choice_of,
    one_line,
    precision_of_target,
)

NEEDS = Needs(
    read=("/etc/OpenCL", "/sys/bus/pci", "/sys/class/accel", "/sys/class/drm", "/sys/dev/char"),
    write=("/dev/accel", "/dev/dri"),
)
"""The devices, what names their drivers, and what these read about the hardware."""

_OPTIONS = ("device", "perf_count")
_HINTS = {"fp32": "f32", "fp16": "f16"}


@dataclass(frozen=True)
class Kind:
    """A kind of device.

    Args:
        name: OpenVINO's.
        precisions: of its targets.
        node: file of the kernel's driver.
        driver: what to install where OpenVINO finds none.
        settings: beside those of all devices.
    """

    name: str
    precisions: tuple[str, ...]
    node: str
    driver: str
    settings: Mapping[str, Any]

    @property
    def processor(self) -> str:
        """As in the names of its targets."""
        return self.name.lower()


KINDS = (
    Kind("GPU", ("fp16", "fp32"), "/dev/dri", "intel-opencl-icd", {}),
    Kind(
        "NPU",
        ("fp16", "int8"),
        "/dev/accel",
        "Intel's NPU driver (linux-npu-driver)",
        {"NPU_BYPASS_UMD_CACHING": True},  # the driver keeps compiled graphs, too
    ),
)


def targets(context: Context) -> list[TargetInfo]:
    """The targets of both kinds of device, with the reason where there is none."""
    version, reason = installed_version()
    core = None
    if not reason:
        import openvino

        core = openvino.Core()
    return [target for kind in KINDS for target in _targets(context, kind, core, version, reason)]


def _targets(
    context: Context, kind: Kind, core: Any, version: str, reason: str
) -> list[TargetInfo]:
    devices: list[str] = []
    name = context.device_name or f"Intel {kind.name}"
    if not reason:
        devices = devices_of(core, kind)
        reason = "" if devices else missing(core, kind)
    if devices:
        name = one_line(str(core.get_property(devices[0], "FULL_DEVICE_NAME")), 100)
    return [
        TargetInfo(
            name=f"{kind.processor}-openvino-{precision}",
            device=name,
            processor=kind.processor,
            runtime="openvino",
            runtime_version=version,
            precision=precision,
            availability=Availability.UNAVAILABLE if reason else Availability.AVAILABLE,
            reason=reason,
            formats=FORMATS[precision],
            options=_OPTIONS,
            # With several of a kind it must be told which one the numbers are of.
            defaults=(f"device={devices[0]}",) if len(devices) > 1 else (),
        )
        for precision in kind.precisions
    ]


def devices_of(core: Any, kind: Kind) -> list[str]:
    """Devices of a kind by the core's own list, the default first: ``GPU``, or ``GPU.0``, …"""
    return [name for name in core.available_devices if name.partition(".")[0] == kind.name]


def missing(core: Any, kind: Kind) -> str:
    """Why the core lists no device of a kind, and what to do."""
    try:
        core.get_property(kind.name, "AVAILABLE_DEVICES")
    except Exception as error:  # of a plugin that does not load
        text = one_line(str(error))
        if "libOpenCL.so.1" in text and "cannot open shared object" in text:
            return (
                "libOpenCL.so.1 is not there, which OpenVINO's GPU plugin needs; run: apt-get "
                f"install ocl-icd-libopencl1 {kind.driver}"
            )
        if "not registered" in text:
            return f"this OpenVINO has no plugin for {kind.name}"
        return f"OpenVINO's {kind.name} plugin does not load: {text}"
    if os.path.exists(kind.node):
        return (
            f"OpenVINO finds no {kind.name}, though {kind.node} is there: install {kind.driver}, "
            f"and let this user write to {kind.node}"
        )
    found = f"OpenVINO finds no {kind.name}: {kind.node} is not there"
    return f"{found}; {NO_NPU_COMPILER}" if _lacks_compiler(core, kind) else found


def _lacks_compiler(core: Any, kind: Kind) -> bool:
    """Whether a kind's compiler is another part, which is not there."""
    if kind.name != "NPU":
        return False
    try:
        core.get_property(kind.name, "NPU_COMPILER_VERSION")
    except Exception:
        return True
    return False


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> OpenvinoSession:
    """Opens a device.

    Args:
        options: ``device``, one of those that OpenVINO lists (the first one); ``perf_count`` (0 or
            1: every call reads the time of its nodes, which makes calls slower; 0).

    Raises:
        BadRequest: an unknown option or value, more than the one thread that waits for the device,
            or no device.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, 1)
    kind = next(kind for kind in KINDS if target.startswith(f"{kind.processor}-"))
    import openvino

    core = openvino.Core()
    return open_session(core, kind, target, options)


def open_session(core: Any, kind: Kind, target: str, options: Mapping[str, str]) -> OpenvinoSession:
    """Opens a device of a core; for the rest see `open_target`."""
    devices = devices_of(core, kind)
    if not devices:
        raise BadRequest(missing(core, kind))
    counters = choice_of(options, "perf_count", ("0", "1")) == "1"
    device = choice_of(options, "device", devices)
    wanted = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_PRECISION_HINT": _HINTS.get(precision_of_target(target)),
        "PERF_COUNT": counters,
        # No graph is loaded from what an earlier run left.
        "CACHE_DIR": "",
        **kind.settings,
    }
    known = core.get_property(device, "SUPPORTED_PROPERTIES")
    settings = {
        name: value for name, value in wanted.items() if value is not None and name in known
    }
    return OpenvinoSession(Placement(target, device, settings, counters), core)
