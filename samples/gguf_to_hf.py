"""Turn a GGUF language model into an fp32 checkpoint directory (safetensors, config, tokenizer).

    python samples/gguf_to_hf.py model.gguf checkpoint/
"""

import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig


def main(gguf: Path, folder: Path) -> None:
    """Dequantise every tensor of `gguf` to fp32 and save it in `folder`."""
    place = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    # Without dequantize transformers 5 keeps the GGUF blocks, which it can run but not save.
    how = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    AutoModelForCausalLM.from_pretrained(**place, **how).save_pretrained(folder)
    AutoTokenizer.from_pretrained(**place).save_pretrained(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
