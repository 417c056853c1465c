"""How an artefact's inputs and outputs are encoded: layout, type, quantisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Edge:
    """An input or output of an artefact.

    Attributes:
        name: as the runtime names it.
        shape: as the runtime takes it.
        dtype: numpy's name.
        scale: of the quantisation, real = scale · (stored - zero_point); 0 for floats.
        zero_point: the stored value of zero.
        channels_last: whether four dimensions are NHWC, where ONNX has NCHW.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0
    channels_last: bool = False

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Real values in ONNX's layout (NCHW) as the artefact takes them; the nearest there is."""
        if self.channels_last and values.ndim == 4:
            values = values.transpose(0, 2, 3, 1)
        if self.scale:
            limits = np.iinfo(self.dtype)
            stored = np.round(values / np.float32(self.scale)) + self.zero_point
            values = np.clip(stored, limits.min, limits.max)
        return np.ascontiguousarray(values, self.dtype)

    def decode(self, values: np.ndarray) -> np.ndarray:
        """What the artefact gives, as float32 real values in ONNX's layout (NCHW)."""
        if self.scale:
            values = (values.astype(np.float32) - self.zero_point) * np.float32(self.scale)
        if self.channels_last and values.ndim == 4:
            values = values.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(values, np.float32)


@dataclass(frozen=True)
class Edges:
    """Inputs and outputs of an artefact, in order."""

    inputs: tuple[Edge, ...]
    outputs: tuple[Edge, ...]
