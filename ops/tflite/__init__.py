"""From the canonical ONNX graph to `.tflite`: fp32, fp16 weights, static int8."""

from .quantisation import quantise_tflite, random_samples
from .writer import write_tflite

__all__ = ["quantise_tflite", "random_samples", "write_tflite"]
