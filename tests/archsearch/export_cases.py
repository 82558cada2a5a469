"""Small checkpoints that the tests of exports share."""

from __future__ import annotations

from archsearch.checkpoint import save_checkpoint
from archsearch.data.tokenizer import train_tokenizer
from archsearch.spec import ArchSpec
from operators.costs import model_weights
from operators.graph import random_weights

CONV = {"kind": "short_conv", "kernel_size": 3}
GQA = {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}
SWA = {"kind": "swa", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 8}
GLA = {"kind": "gla", "heads": 4}
TEXT = "def add(a, b):\n    return a + b\n\n\nfor number in range(10):\n    print(number, add(number, 1))\n"


def spec_of(*operators, **overrides):
    layers = [{"operator": operator, "ffn": {"intermediate_size": 96}} for operator in operators]
    return ArchSpec.from_dict({"name": "test", "hidden_size": 64, "vocab_size": 300, "layers": layers} | overrides)


def weights_of(spec, seed=1):
    """Random weights with activations of order one, so that every part of a layer matters."""
    names = model_weights(spec.layers, spec.dims, vocab_size=spec.vocab_size, tie_embeddings=spec.tie_embeddings)
    return dict(random_weights(names, seed))


def save(folder, spec, weights=None):
    from safetensors.numpy import save_file

    tokenizer = train_tokenizer([TEXT], 280)

    def write(place):
        save_file(weights or weights_of(spec), place / "model.safetensors")
        (place / "tokenizer.json").write_text(tokenizer.to_json())

    save_checkpoint(folder, spec, 7, write)
    return folder


def leftovers(tmp_path, *expected):
    return sorted(path.name for path in tmp_path.iterdir() if path.name not in expected)
