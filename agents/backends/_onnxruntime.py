"""What the backends that run onnxruntime share: its errors, and outputs of its sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import AgentError, BadRequest, OutOfMemory, RuntimeCrashed, UnsupportedOperator
from .base import TensorInfo, check_inputs, one_line


def typed(error: Exception, runtime: str = "onnxruntime") -> AgentError:
    """The error of a kind that an exception of onnxruntime stands for."""
    if isinstance(error, AgentError):
        return error
    name, text = type(error).__name__, one_line(str(error))
    if isinstance(error, MemoryError) or "bad_alloc" in text or "allocate memory" in text:
        return OutOfMemory(f"{runtime}: {text}")
    if name in ("NotImplemented", "NotFound") or any(
        phrase in text for phrase in ("No Op registered", "is not a registered function/op")
    ):
        return UnsupportedOperator(f"{runtime}: {text}")
    if name in ("InvalidProtobuf", "InvalidGraph", "NoSuchFile", "NoModel", "InvalidArgument"):
        return BadRequest(f"{runtime} cannot read the graph: {text}")
    # `Fail` says "unsupported opset" and the like while loading, anything at run time.
    if name == "Fail" and "opset" in text:
        return UnsupportedOperator(f"{runtime}: {text}")
    return RuntimeCrashed(f"{runtime}: {name}: {text}")


def outputs_of(
    session: Any,
    expected: Sequence[TensorInfo],
    inputs: Mapping[str, np.ndarray],
    runtime: str = "onnxruntime",
) -> dict[str, np.ndarray]:
    """Outputs of a session by name; not timed.

    Args:
        session: an `InferenceSession`.
        expected: its inputs.
        inputs: by name.
        runtime: its name in errors.

    Raises:
        AgentError: the inputs do not fit the graph, or it failed.
    """
    check_inputs(expected, inputs)
    names = [node.name for node in session.get_outputs()]
    try:
        return dict(zip(names, session.run(names, dict(inputs))))
    except Exception as error:
        raise typed(error, runtime) from error
