"""Files that leave the pipeline: packed safetensors and ONNX, and the proof that they are what was evaluated."""
