"""Places where ONNX models are run and measured. Knows nothing of language models."""
