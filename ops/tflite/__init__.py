"""From the canonical ONNX graph to `.tflite`: fp32, fp16 weights, static int8."""

from .from_torch import convert_modules
from .quantisation import quantise_tflite
from .writer import write_tflite

__all__ = ["convert_modules", "quantise_tflite", "write_tflite"]
