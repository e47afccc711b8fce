"""Models as people have them: checkpoints in; folders of onnxruntime-genai, optimum and sentence-transformers."""
