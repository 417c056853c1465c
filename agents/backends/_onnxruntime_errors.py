"""What onnxruntime raises, as typed errors."""

from __future__ import annotations

from ..errors import AgentError, BadRequest, OutOfMemory, RuntimeCrashed, UnsupportedOperator
from .base import one_line


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
