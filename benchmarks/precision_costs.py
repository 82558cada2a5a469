"""What each precision costs a trained model: bits per byte of its ONNX exports on text that it was not trained on.

    python benchmarks/precision_costs.py CHECKPOINT [--data PATH --windows 32 --tokens 256]

The files themselves are read, token by token, in ONNX Runtime, each after it was compared with torch as every export is. Windows lie evenly
in the held-out text (by default of what `archsearch train` reads by default) and start anew. "Over fp32" is the mean of the windows'
differences and its standard error; it tells these precisions of this checkpoint apart, and says nothing of another checkpoint.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from archsearch.checkpoint import Checkpoint
from archsearch.data import default_corpus, open_corpus, prepare
from archsearch.export.to_onnx import MODEL, OnnxDecoder, export_onnx
from archsearch.parity import decode_logits
from operators.costs import model_weights, weight_bytes
from operators.specs import PRECISIONS


def log_probabilities(decoder: OnnxDecoder, ids: list[int]) -> np.ndarray:
    """[T-1, V] of what follows each token but the last."""
    logits = decode_logits(decoder, ids[:-1], 1).astype(np.float64)
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", action="append", help="as for `archsearch train`; default: Python's own sources")
    parser.add_argument("--windows", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="of a window")
    options = parser.parse_args()
    checkpoint = Checkpoint.open(options.checkpoint)
    spec, tokenizer = checkpoint.spec, checkpoint.tokenizer()
    text = prepare(open_corpus(options.data) if options.data else default_corpus(), spec.vocab_size, tokenizer=tokenizer).held_out
    starts = np.linspace(0, len(text) - options.tokens - 1, options.windows).astype(int)
    found: dict[str, list[tuple[float, float, float]]] = {precision: [] for precision in PRECISIONS}
    with tempfile.TemporaryDirectory() as folder:
        decoders = {}
        for precision in PRECISIONS:
            print(f"{precision}: {export_onnx(options.checkpoint, Path(folder) / precision, precision)}", flush=True)
            decoders[precision] = OnnxDecoder(Path(folder) / precision / MODEL)
        for start in starts:
            ids = [int(token) for token in text[start : start + options.tokens + 1]]
            size = tokenizer.token_bytes_V[ids[1:]]
            for precision, decoder in decoders.items():
                this_NV = log_probabilities(decoder, ids)
                if precision == "fp32":
                    fp32_NV = this_NV
                nats = -this_NV[np.arange(options.tokens), ids[1:]][size > 0].sum()  # the end of a document is no byte
                divergence = (np.exp(fp32_NV) * (fp32_NV - this_NV)).sum(-1).mean()
                agreement = (this_NV.argmax(-1) == fp32_NV.argmax(-1)).mean()
                found[precision].append((nats / np.log(2) / size.sum(), divergence, agreement))
    weights = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    print(f"{options.windows} windows of {options.tokens} tokens; of these weights as stored:")
    for precision, rows in found.items():
        bits, divergence, agreement = np.array(rows).T
        over = bits - np.array(found["fp32"])[:, 0]
        print(
            f"{precision:>8}: {sum(weight_bytes(weight, precision) for weight in weights) / 1e6:6.2f} MB, {bits.mean():.4f} bits per byte, "
            f"over fp32 {over.mean():+.4f} (standard error {over.std(ddof=1) / len(over) ** 0.5:.4f}), KL {divergence.mean():.5f} nats, "
            f"same first choice {agreement.mean():.1%}"
        )


if __name__ == "__main__":
    main()
