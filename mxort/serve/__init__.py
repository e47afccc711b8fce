"""``mxort serve``: folders of models behind OpenAI's HTTP interface.

A thin layer: onnxruntime-genai batches and generates, FastAPI and uvicorn speak HTTP. What is ours is who gets which of
genai's engines when, and that nothing a client sends ends anything but its own request.
"""
