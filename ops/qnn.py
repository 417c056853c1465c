"""QNN's converter and compiler, through onnxruntime's provider: DLC files and context binaries.

Qualcomm's own converters come with an SDK that cannot be had without an account. The provider
writes a DLC of what it hands to QNN, which Qualcomm's own reader opens; that a board runs one is
unproven.
"""

from __future__ import annotations

import functools
import importlib
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import HurricaneError, UnsupportedNode
from .processes import on_all_cores
from .socs import SOCS, Soc, check_binary

PACKAGES = ("onnxruntime", "onnxruntime-qnn")
_MODULE = "onnxruntime_qnn"
_DLC_SOC = next(soc for soc in SOCS if soc.name == "SM8650")  # a DLC is of no chip
_WHEN = re.compile(rb'("timestamp": ")\d{4}-\d\d-\d\d \d\d:\d\d:\d\d( UTC")')
_NEVER = rb"\g<1>1980-01-01 00:00:00\g<2>"


def write_dlc(model: bytes) -> bytes:
    """A DLC of an ONNX graph; equal request, equal bytes.

    Args:
        model: of fp32, or quantised as QDQ.

    Raises:
        UnsupportedNode: QNN does not take a node of it.
        HurricaneError: QNN failed.
    """
    with tempfile.TemporaryDirectory(prefix="hurricane-dlc-") as folder:
        library = os.path.dirname(_provider().get_library_path())
        settings = {
            "dump_qnn_ir_dlc": "1",
            "dump_qnn_ir_dlc_dir": folder,
            "qnn_ir_backend_path": os.path.join(library, "libQnnIr.so"),
        }
        _check_whole(_session(model, _DLC_SOC, settings))
        files = sorted(Path(folder).glob("*.dlc"))
        if len(files) != 1:
            raise HurricaneError(f"QNN wrote {len(files)} DLC files of one graph")
        # Its archive has no checksums, so that a text may be replaced by one as long.
        return _WHEN.sub(_NEVER, files[0].read_bytes())


def compile_context(model: bytes, soc: Soc) -> bytes:
    """A context binary for a chip, inside an ONNX graph of one node, as onnxruntime loads it.

    It is made in a process of its own: settings of one chip stay for the next in a process.

    Raises:
        UnsupportedNode: QNN does not take a node of the graph.
        BadRequest: QNN compiled for another chip.
        HurricaneError: QNN failed.
    """
    (content,) = on_all_cores(
        functools.partial(_compiled, soc=soc), [model], 1, (_MODULE,), "compiles with QNN"
    )
    check_binary(content, soc)
    return content


def _compiled(model: bytes, soc: Soc) -> bytes:
    import onnxruntime

    _check_whole(_session(model, soc, {}))
    compiler: Any = onnxruntime.ModelCompiler(
        _options(soc, {}, strict=True), model, embed_compiled_data_into_model=True
    )
    return compiler.compile_to_bytes()


@functools.cache
def _provider() -> Any:
    """The provider's module; its library is known to onnxruntime from then on."""
    try:
        provider = importlib.import_module(_MODULE)
    except ImportError as error:
        raise HurricaneError(
            "onnxruntime-qnn is not installed here; run: pip install 'hurricane-nas[qnn]'"
        ) from error
    import onnxruntime

    onnxruntime.register_execution_provider_library(
        provider.get_ep_name(), provider.get_library_path()
    )
    return provider


def _options(soc: Soc, settings: Mapping[str, str], strict: bool) -> Any:
    import onnxruntime

    provider = _provider()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what matters is in its errors
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    if strict:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    name = provider.get_ep_name()
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == name][:1]
    chosen = {"backend_path": provider.get_qnn_htp_path(), "soc_model": str(soc.number)}
    options.add_provider_for_devices(devices, {**chosen, **settings})
    return options


def _session(model: bytes, soc: Soc, settings: Mapping[str, str]) -> Any:
    import onnxruntime

    try:
        return onnxruntime.InferenceSession(
            model, sess_options=_options(soc, settings, strict=False)
        )
    except Exception as error:
        raise HurricaneError(f"QNN: {' '.join(str(error).split())[:300]}") from error


def _check_whole(session: Any) -> None:
    """Refuses a graph of which QNN leaves nodes to the CPU."""
    name = _provider().get_ep_name()
    for part in session.get_provider_graph_assignment_info():
        if part.ep_name != name:
            node = part.get_nodes()[0]
            raise UnsupportedNode(node.op_type, node.name, "QNN does not take it")
