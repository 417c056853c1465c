"""OpenVINO on the CPU: targets ``cpu-openvino-fp32`` and ``cpu-openvino-int8``."""

from __future__ import annotations

from collections.abc import Mapping

from ._openvino import FORMATS, OpenvinoSession, Placement, installed_version
from .base import (
    Context,
    TargetInfo,
    allowed_cores,
    check_options,
    check_threads,
    choice_of,
    cpu_targets,
    pin,
)

_OPTIONS = ("denormals_optimization",)


def targets(context: Context) -> list[TargetInfo]:
    """The targets of this backend, with the reason where the runtime is not there."""
    version, reason = installed_version()
    formats = {precision: FORMATS[precision] for precision in ("fp32", "int8")}
    options = dict.fromkeys(formats, _OPTIONS)
    return cpu_targets(context, "openvino", version, reason, formats, options)


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> OpenvinoSession:
    """Opens a target.

    Args:
        options: ``denormals_optimization`` (0 or 1: flush denormal numbers to zero; 0).
        threads: threads of inference, each pinned to a core of its own.

    Raises:
        BadRequest: an unknown option or value, or too many threads.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, len(allowed_cores()))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": True,
        # Else it takes bf16 or f16 where the processor has it, and says nothing. What a graph
        # has quantised runs in 8 bits all the same.
        "INFERENCE_PRECISION_HINT": "f32",
        "CPU_DENORMALS_OPTIMIZATION": choice_of(options, "denormals_optimization", ("0", "1"))
        == "1",
    }
    # Before the import: OpenVINO looks once at the cores that it may use.
    pin(threads)
    return OpenvinoSession(Placement(target, "CPU", settings))
