"""The comparison with transformers runs from start to end, and all variants train the same model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train_throughput.py"
SMALL = "--hidden 64 --layers 2 --ffn 96 --vocab 128 --attention-at 1 --batch 2 --sequence 16 --updates 1 --threads 1"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_comparison_comes_to_its_end(precision):
    pytest.importorskip("transformers")
    variants = ["archsearch", "archsearch, plain", "transformers, as ours"]
    command = [sys.executable, str(SCRIPT), *SMALL.split(), "--precision", precision, "--json", "--variants", *variants]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr  # also where losses or gradient norms differ
    row = json.loads(done.stdout)
    assert list(row["variants"]) == variants
    for one in row["variants"].values():
        low, high = one["quartiles"]
        assert 0 < low <= one["tokens_per_s"] <= high
        assert 0 < one["mfu"] < 1
