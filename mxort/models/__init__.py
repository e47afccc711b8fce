"""Models as people have them: checkpoints in, folders of onnxruntime-genai, optimum, sentence-transformers in and out."""
