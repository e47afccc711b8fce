"""Turn a GGUF language model into an fp32 checkpoint directory (safetensors, config, tokenizer).

Usage: python samples/gguf_to_hf.py model.gguf checkpoint/
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(gguf: Path, folder: Path) -> None:
    """Dequantise every tensor of `gguf` to fp32 and save it in `folder`."""
    # Without dequantize transformers 5 keeps the GGUF blocks, which it can run but not save.
    weights = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=weights, dtype=torch.float32
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
