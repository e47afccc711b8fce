"""Turn a BERT checkpoint directory (safetensors, config) into fp32 ONNX for any batch and length.

Usage: python samples/bert_to_onnx.py checkpoint/ model.onnx
"""

import sys
from pathlib import Path

import torch
from transformers import BertModel


class LastHiddenState(torch.nn.Module):
    """int64 [batch, seq] tokens and mask -> float [batch, seq, hidden]."""

    def __init__(self, model: BertModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.model(tokens, mask).last_hidden_state
        return result


def main(folder: Path, out: Path) -> None:
    """Export the model in `folder` to `out`, and check it against torch on other sizes than it was traced with."""
    bert = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager")
    model = LastHiddenState(bert).eval()
    traced = torch.ones(2, 16, dtype=torch.int64)
    names = {"input_names": ["input_ids", "attention_mask"], "output_names": ["last_hidden_state"]}
    axes = {name: {0: "batch", 1: "seq"} for kind in names.values() for name in kind}
    # Not dynamo: torch 2.13's export of transformers 5.23's BERT computes something else (the check below).
    torch.onnx.export(
        model, (traced, traced), out, dynamo=False, opset_version=17, dynamic_axes=axes, **names
    )
    _check(model, out)


def _check(model: torch.nn.Module, out: Path) -> None:
    import onnxruntime as ort

    tokens = torch.randint(1000, 20000, (3, 77), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    mask[1, 50:] = 0
    with torch.no_grad():
        wanted = model(tokens, mask)
    feeds = {"input_ids": tokens.numpy(), "attention_mask": mask.numpy()}
    (got,) = ort.InferenceSession(out, providers=["CPUExecutionProvider"]).run(None, feeds)
    error = float((torch.from_numpy(got) - wanted)[mask.bool()].abs().max())
    if error > 1e-4:  # the numbers are a few units; fp32 in another order errs by some 1e-6
        raise SystemExit(f"{out}: differs from torch by {error:.2g}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
