"""The inference service: the Model Hub, execution of ONNX models and language models, signed receipts."""
