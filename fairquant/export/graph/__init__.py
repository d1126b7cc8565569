"""A quantized model as an ONNX graph: what is exported, its activations, its layers, its packed codes."""
