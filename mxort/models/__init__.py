"""Folders of models, as onnxruntime-genai, optimum and sentence-transformers make and read them."""
