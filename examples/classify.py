"""Classifies pictures with an exported network; needs numpy, pillow and the file's runtime.

    python classify.py model.tflite cat.jpg      # ai-edge-litert, or tflite-runtime
    python classify.py model.onnx cat.jpg dog.jpg    # onnxruntime

What stands in the file model.tflite.json is explained in docs/deploying.md.
"""

import json
import sys

import numpy as np
from PIL import Image, ImageOps


def load(path):
    """A function from the network's input to its output, both as the file has them."""
    if path.endswith(".tflite"):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError:
            from tflite_runtime.interpreter import Interpreter
        network = Interpreter(path)
        network.allocate_tensors()

        def run(image):
            network.set_tensor(network.get_input_details()[0]["index"], image)
            network.invoke()
            return network.get_tensor(network.get_output_details()[0]["index"])

        return run
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {session.get_inputs()[0].name: image})[0]


def read(path, about):
    """A picture as the network's input."""
    source = about["input"]
    picture = ImageOps.exif_transpose(Image.open(path))
    picture = picture.convert("RGB" if source["channels"] == "RGB" else "L")
    size = (source["width"], source["height"])
    if picture.size != size:  # the middle is cut out
        picture = ImageOps.fit(picture, size, Image.Resampling.BILINEAR)
    image = np.asarray(picture, np.float32).reshape(1, source["height"], source["width"], -1)
    mean, std = (np.float32(about[name]) * 255 for name in ("mean", "std"))
    image = (image - mean) * (1 / std)
    if source["scale"]:
        limits = np.iinfo(source["type"])
        image = np.round(image / np.float32(source["scale"])) + source["zero_point"]
        image = np.clip(image, limits.min, limits.max)
    if source["layout"] == "NCHW":
        image = image.transpose(0, 3, 1, 2)
    return np.ascontiguousarray(image, source["type"])


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    model, *pictures = sys.argv[1:]
    with open(model + ".json", encoding="utf-8") as file:
        about = json.load(file)
    network = load(model)
    for picture in pictures:
        print(picture, about["classes"][int(np.argmax(network(read(picture, about))))])
