"""What can be built: candidate operators, backbones, and their export to ONNX."""
