"""A phone's DSP by a TFLite delegate over adb: target ``dsp-tflite-int8``.

TensorFlow Lite's ``benchmark_model`` runs each graph on the phone with an external delegate that
must take all of it, and tells one mean over the calls: every call of a visit has that time and the
flag ``averaged``. Program and delegate lie in ``/data/local/tmp/tflite``. It gives no outputs.

Written after TensorFlow's documentation and public logs; it has met no phone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import numpy as np

from ..commands import COMMAND_S, TOOL_S, AdbRunner, run_tool
from ..conditions import Conditions
from ..errors import AgentError, BadRequest, BoardNotReady, RuntimeCrashed
from ..formats.tflite_file import inputs_of
from ..phone import PHONE_NEEDS, Phone
from ..sandbox import Needs
from ..tools.tflite import Timing, read_benchmark, tflite_error
from .base import (
    Availability,
    Context,
    Loaded,
    Sample,
    Session,
    TargetInfo,
    TensorInfo,
    check_eight_bits,
    check_format,
    check_options,
    check_threads,
    one_line,
)

TARGET = "dsp-tflite-int8"
PHONE_TFLITE = "/data/local/tmp/tflite"
"""Where ``benchmark_model`` and the delegate's libraries lie on the phone."""

_FORMATS = ("tflite",)
_PROGRAM = "benchmark_model"
_OPTIONS = ("delegate", "delegate_options")
_DELEGATE = "libQnnTFLiteDelegate.so"
_SETTINGS = "backend_type:htp;htp_performance_mode:2"
_PAIR = r"[a-z0-9_]+:[A-Za-z0-9_./-]+"
_SETTING = re.compile(rf"{_PAIR}(?:;{_PAIR})*")
_LIBRARY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_PROCESSORS = ("htp", "dsp")
_UNIT = "DELEGATE"


def needs(context: Context) -> Needs:
    """What a phone takes; without one nothing runs."""
    return PHONE_NEEDS if context.adb else Needs()


def targets(context: Context) -> list[TargetInfo]:
    """The one target, with the reason where it cannot be used."""
    reason, device = "it is for phones: agent serve --adb SERIAL", context.device_name
    availability = Availability.UNAVAILABLE
    if context.adb:
        try:
            runner = AdbRunner(context.adb, os.getcwd())
            try:
                phone = Phone(runner)
                device = phone.name() or device
                reason = _missing(runner)
                availability = availability if reason else phone.availability()
            finally:
                runner.close()
        except AgentError as error:
            reason = str(error)
    return [
        TargetInfo(
            name=TARGET,
            device=device or "phone",
            processor="dsp",
            runtime="tflite",
            runtime_version="",
            precision="int8",
            availability=availability,
            reason=reason,
            formats=_FORMATS,
            resident=False,
            options=_OPTIONS,
            defaults=(f"delegate={_DELEGATE}", f"delegate_options={_SETTINGS.replace(';', ',')}"),
        )
    ]


def open_target(
    context: Context, target: str, options: Mapping[str, str], threads: int
) -> PhoneSession:
    """Opens the phone.

    Args:
        options: ``delegate``, a library in `PHONE_TFLITE`, and ``delegate_options``, ``key:value``
            with commas between.

    Raises:
        BadRequest: an unknown option or value, more than one thread, or no phone.
        BoardNotReady: the program is missing.
        Busy: the phone is in no state to be measured.
        DeviceLost: it does not answer.
    """
    check_options(target, _OPTIONS, options)
    check_threads(target, threads, 1)
    delegate = options.get("delegate", _DELEGATE)
    settings = options.get("delegate_options", _SETTINGS).replace(",", ";")
    if not _LIBRARY.fullmatch(delegate):
        raise BadRequest(
            f"option 'delegate' is the name of a library in {PHONE_TFLITE}, "
            f"not '{one_line(delegate, 80)}'"
        )
    if not _SETTING.fullmatch(settings):
        raise BadRequest(
            "option 'delegate_options' is key:value with commas between, "
            f"not '{one_line(settings, 80)}'"
        )
    pairs = dict(pair.split(":", 1) for pair in settings.split(";"))
    if pairs.get("backend_type", _PROCESSORS[0]) not in _PROCESSORS:
        raise BadRequest(
            f"option 'delegate_options': backend_type is {' or '.join(_PROCESSORS)} for {TARGET}"
        )
    path = f"{PHONE_TFLITE}/{delegate}"
    return PhoneSession(AdbRunner(context.adb, os.getcwd()), path, settings)


def _missing(runner: AdbRunner) -> str:
    """What the phone lacks; empty: nothing."""
    program = f"{PHONE_TFLITE}/{_PROGRAM}"
    if runner.run(("test", "-x", program), COMMAND_S).status:
        return (
            f"{_PROGRAM} is not on the phone, or is no program: push it to {PHONE_TFLITE}, and "
            "chmod 755 it (docs/snapdragon.md)"
        )
    return ""


class PhoneSession(Session):
    """One phone with one delegate.

    Args:
        runner: of commands on it.
        delegate: path of the library there.
        settings: of the delegate, ``key:value;key:value``.

    Raises:
        BoardNotReady: the program is missing.
        Busy: the phone is in no state to be measured.
    """

    warms_up = False  # the program's own --warmup_runs do

    def __init__(self, runner: AdbRunner, delegate: str, settings: str) -> None:
        self._runner, self._phone = runner, Phone(runner)
        try:
            if reason := _missing(runner):
                raise BoardNotReady(reason)
            self._phone.check_battery()
        except AgentError:
            runner.close()
            raise
        self._delegate, self._settings = delegate, settings

    def load(self, content: bytes, format: str) -> PhoneGraph:
        check_format(TARGET, _FORMATS, format)
        check_eight_bits(TARGET, [TensorInfo(*entry) for entry in inputs_of(content)])
        return PhoneGraph(self, self._runner.put(content, ".tflite"))

    def measure(self, path: str, calls: int) -> Timing:
        """What calls take in the mean, and what the delegate took.

        Raises:
            AgentError: what the tool says went wrong; the delegate left nodes to the CPU.
        """
        words = (
            f"{PHONE_TFLITE}/{_PROGRAM}",
            f"--graph={path}",
            f"--external_delegate_path={self._delegate}",
            f"--external_delegate_options={self._settings}",
            "--require_full_delegation=true",
            "--verbose=true",
            "--num_threads=1",
            f"--num_runs={calls}",
            "--min_secs=0",
            "--warmup_runs=1",
            "--warmup_min_secs=0",
        )
        library = self._delegate.rpartition("/")[0]
        environment = {"LD_LIBRARY_PATH": library, "ADSP_LIBRARY_PATH": library}
        output = run_tool(self._runner, words, TOOL_S, environment, tflite_error)
        found = read_benchmark(output.text, delegated=True)
        if found.calls != calls:
            raise RuntimeCrashed(f"{_PROGRAM} made {found.calls} calls, not {calls}")
        return found

    def conditions(self) -> Conditions:
        return self._phone.conditions()

    def close(self) -> None:
        self._runner.close()


class PhoneGraph(Loaded):
    """A file on the phone."""

    def __init__(self, session: PhoneSession, path: str) -> None:
        self.compute_unit, self.flags = _UNIT, ("averaged",)
        self._session, self._path = session, path

    def timed_calls(self, count: int) -> list[Sample]:
        found = self._session.measure(self._path, count)
        if found.placement is not None:
            self.compute_unit = found.placement.delegate
        return [Sample(found.mean_us / 1e3)] * count

    def inputs(self) -> tuple[TensorInfo, ...]:
        return ()

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Raises BadRequest: the tool gives none."""
        raise BadRequest(f"{_PROGRAM} gives no outputs")

    def close(self) -> None:
        """Nothing is held: the files go with the session."""
