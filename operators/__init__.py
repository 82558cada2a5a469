"""Building blocks of small language models: specs, costs, torch modules, and ONNX graphs with the runtime's fused operators."""
