"""Simulated devices on a virtual clock: targets ``sim-…``, one for each device file.

What a call takes is computed from the ONNX graph and the device's parameters
(`_simulation_device`), disturbed as the device file says, with noise that is seeded: the same
agent seed, protocol seed, artefact and order of calls give the same numbers on every machine.
Every number is labelled: the availability is SIMULATED, the runtime and the compute unit begin
with ``simulated``, and ``simulated`` is among the flags.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..conditions import Conditions
from ..devices import device_names
from ..errors import BadRequest, DeviceLost, OutOfMemory, RuntimeCrashed
from ._simulation_cache import Cache
from ._simulation_device import (
    OPTIONS,
    Device,
    Price,
    load_device,
    price,
    with_options,
)
from ._simulation_graph import WorkGraph, read_graph
from .base import (
    Availability,
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_format,
    check_inputs,
    check_threads,
    one_line,
)

_FORMATS = ("onnx",)
_HANG_MS = 3_600_000.0
"""A call that hangs takes an hour of the device's clock, which ends it by any time limit."""
_DIGEST_DIGITS = 8
"""Fewer hexadecimal digits do not name an artefact."""


def targets(context: Context) -> list[TargetInfo]:
    """One target for each device that the agent was asked to simulate."""
    missing = importlib.util.find_spec("onnx") is None
    reason = "needs onnx: pip install 'hurricane-nas[simulated]'" if missing else ""
    found = []
    for name in _asked(context):
        try:
            found.append(_info(load_device(name), reason))
        except BadRequest as error:
            found.append(
                TargetInfo(
                    name=_target_name(name),
                    device=Path(name).stem,
                    processor="",
                    runtime="",
                    runtime_version="",
                    precision="",
                    availability=Availability.UNAVAILABLE,
                    reason=str(error),
                    formats=(),
                )
            )
    return found


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> SimulatedSession:
    """Opens a simulated device.

    Args:
        options: parameters by name that replace the device file's (`_simulation_device.OPTIONS`).

    Raises:
        BadRequest: no such device, an unknown option or a value out of range, or more than
            the one thread that the model knows.
    """
    for name in _asked(context):
        if _target_name(name) == target:
            check_threads(target, threads, 1)
            device = with_options(load_device(name), target, options)
            return SimulatedSession(device, context.seed, context.pace == "real")
    raise BadRequest(f"the agent does not simulate '{target}'; start it with --simulate NAME")


def _asked(context: Context) -> tuple[str, ...]:
    names = [name[4:] if name.startswith("sim-") else name for name in context.simulate]
    if "all" in names:
        names = [*device_names(), *(name for name in names if name != "all")]
    return tuple(dict.fromkeys(names))


def _target_name(name: str) -> str:
    return f"sim-{Path(name).stem if name.endswith('.toml') else name}"


def _info(device: Device, reason: str) -> TargetInfo:
    return TargetInfo(
        name=f"sim-{device.name}",
        device=device.name,
        processor=device.processor,
        runtime=f"simulated_{device.runtime}",
        runtime_version=device.version,
        precision=device.precision,
        availability=Availability.UNAVAILABLE if reason else Availability.SIMULATED,
        reason=reason,
        formats=_FORMATS,
        resident=device.resident,
        device_time=device.device_time,
        options=OPTIONS,
        max_threads=1,
    )


class SimulatedSession(Session):
    """A device with its clock, its noise, and what is loaded on it."""

    def __init__(self, device: Device, seed: int, real_pace: bool) -> None:
        self.device = device
        self.cache = Cache(device.disturbances.cache_mib * 2**20)
        self._seed = seed
        self._batch_seed = 0
        self._real_pace = real_pace
        self._clock_ms = 0.0
        self._worked_ms = 0.0
        self._loaded = 0
        self._known: dict[str, tuple[WorkGraph, Price]] = {}
        self._noise: dict[str, np.random.Generator] = {}

    def load(self, content: bytes, format: str) -> SimulatedGraph:
        device = self.device
        check_format(f"sim-{device.name}", _FORMATS, format)
        self.check_alive()
        if self._loaded and not device.resident:
            raise OutOfMemory(f"sim-{device.name} holds one graph at a time; close the loaded one")
        limit_mib = device.disturbances.memory_mib
        if limit_mib and len(content) > limit_mib * 2**20:
            raise OutOfMemory(
                f"sim-{device.name} has {limit_mib:g} MiB, "
                f"the artefact has {len(content) / 2**20:.1f} MiB"
            )
        digest = hashlib.sha256(content).hexdigest()
        known = self._known.get(digest)
        if known is None:
            graph = read_graph(content)
            known = self._known[digest] = (graph, price(graph, device))
        load_ms = device.call.load_ms + len(content) / (device.call.load_gbs * 1e6)
        self.advance(load_ms * device.disturbances.slower)
        self._loaded += 1
        return SimulatedGraph(self, content, digest, *known)

    def begin(self, seed: int) -> None:
        self._batch_seed = seed
        self._noise.clear()

    def elapsed_ms(self) -> float:
        return self._clock_ms

    def conditions(self) -> Conditions:
        device, limit_s = self.device, self.device.disturbances.throttle_after_s
        if not limit_s:
            return Conditions(device.temperature_c, device.frequency_mhz)
        warmed = min(1.0, self._worked_ms / 1e3 / limit_s)
        return Conditions(
            temperature_c=device.temperature_c + warmed * (device.hot_c - device.temperature_c),
            frequency_mhz=device.frequency_mhz / self._throttling(),
            throttle_events=int(warmed == 1.0),
        )

    def advance(self, duration_ms: float) -> None:
        """The device works for some time; at real pace, waits as long."""
        self._clock_ms += duration_ms
        self._worked_ms += duration_ms
        if self._real_pace:
            time.sleep(duration_ms / 1e3)

    def hang(self) -> None:
        """Time passes in which the device does no work, so it neither heats up nor ages."""
        self._clock_ms += _HANG_MS
        if self._real_pace:
            time.sleep(_HANG_MS / 1e3)

    def check_alive(self) -> None:
        """Raises DeviceLost where the device dropped off by now."""
        limit_s = self.device.disturbances.lost_after_s
        if limit_s and self._worked_ms >= limit_s * 1e3:
            raise DeviceLost(f"sim-{self.device.name} no longer answers; attach it again")

    def slowdown(self) -> float:
        """Times that calls take now, over those of a cold device: drift and throttling."""
        disturbances = self.device.disturbances
        drift = disturbances.drift_per_minute * self._worked_ms / 60e3
        if disturbances.drift_most:
            drift = min(max(drift, -disturbances.drift_most), disturbances.drift_most)
        return max(0.01, 1.0 + drift) * self._throttling()

    def noise_of(self, digest: str) -> np.random.Generator:
        """The batch's random numbers for one artefact, whatever else is in the batch."""
        if digest not in self._noise:
            text = f"{self._seed}|{self._batch_seed}|{self.device.name}|{digest}"
            seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "little")
            self._noise[digest] = np.random.default_rng(seed)
        return self._noise[digest]

    def forget(self, graph: SimulatedGraph) -> None:
        """A graph is no longer loaded."""
        self._loaded -= 1
        self.cache.drop(graph)

    def _throttling(self) -> float:
        disturbances = self.device.disturbances
        limit_s = disturbances.throttle_after_s
        hot = limit_s and self._worked_ms >= limit_s * 1e3
        return disturbances.throttle_factor if hot else 1.0


class SimulatedGraph(Loaded):
    """One graph on a simulated device."""

    def __init__(
        self,
        session: SimulatedSession,
        content: bytes,
        digest: str,
        graph: WorkGraph,
        price: Price,
    ) -> None:
        self._session = session
        self._content = content
        self._digest = digest
        self._graph = graph
        self._price = price
        device = session.device
        self._touched = device.touched(graph)
        fallback = self._is_named(device.disturbances.fallback_on)
        self._factor = device.disturbances.fallback_factor if fallback else 1.0
        unit = "CPU" if fallback else device.unit
        flags = ["simulated"]
        if fallback:
            flags.append("fallback:cpu")
        elif price.slow and device.slow_unit is not None:
            unit += f"+{device.slow_unit.name}"
            flags.append(f"slow-unit:{device.slow_unit.name.lower()}")
        self.compute_unit = f"simulated:{unit}"
        self.flags = tuple(flags)

    def timed_calls(self, count: int) -> list[Sample]:
        session, disturbances = self._session, self._session.device.disturbances
        session.check_alive()
        if self._is_named(disturbances.crash_on):
            _crash()
        if self._is_named(disturbances.hang_on):
            session.hang()
            return [Sample(_HANG_MS)] * count
        random = session.noise_of(self._digest)
        device_ms = np.full(count, self._price.device_ms * self._factor * session.slowdown())
        device_ms *= disturbances.slower
        call_ms = np.full(count, self._price.call_ms * disturbances.slower)
        if disturbances.noise:
            device_ms *= np.exp(disturbances.noise * random.standard_normal(count))
        if disturbances.call_jitter:
            call_ms *= np.exp(disturbances.call_jitter * random.standard_normal(count))
        if disturbances.bimodal_probability and random.random() < disturbances.bimodal_probability:
            device_ms *= disturbances.bimodal_factor
        if disturbances.outlier_probability:
            outliers = random.random(count) < disturbances.outlier_probability
            device_ms[outliers] *= disturbances.outlier_factor
        if disturbances.warm_gain:
            held = [session.cache.call(self, self._touched) for _ in range(count)]
            device_ms *= 1.0 - disturbances.warm_gain * np.array(held)
        wall_ms = device_ms + call_ms
        session.advance(float(wall_ms.sum()))
        if not session.device.device_time:
            return [Sample(wall) for wall in wall_ms.tolist()]
        return [Sample(*pair) for pair in zip(wall_ms.tolist(), device_ms.tolist())]

    def inputs(self) -> tuple[TensorInfo, ...]:
        return self._graph.inputs

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs in fp32 by onnx's reference: what is simulated is time, not precision."""
        check_inputs(self._graph.inputs, inputs)
        import onnx
        from onnx.reference import ReferenceEvaluator

        names = [tensor.name for tensor in self._graph.outputs]
        try:
            model = onnx.load_from_string(self._content)
            values = ReferenceEvaluator(model).run(names, dict(inputs))
        except Exception as error:
            raise RuntimeCrashed(f"onnx's reference: {one_line(str(error))}") from error
        return {name: np.asarray(value) for name, value in zip(names, values)}

    def close(self) -> None:
        self._session.forget(self)

    def _is_named(self, pattern: str) -> bool:
        """Whether a disturbance's `…_on` means this graph."""
        if not pattern:
            return False
        by_digest = len(pattern) >= _DIGEST_DIGITS and self._digest.startswith(pattern.lower())
        return by_digest or pattern in self._graph.op_types


def _crash() -> None:
    """Dies as a process does whose runtime touches memory that is not its own."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), signal.SIGSEGV)
