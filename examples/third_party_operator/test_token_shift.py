"""The operator under archsearch's two contracts, and in a model beside the others.

Run it from a checkout of archsearch, where the contracts are: `python -m pytest PATH/test_token_shift.py --rootdir .`
"""

import numpy as np
import pytest
import torch
from token_shift import TokenShift, TokenShiftSpec

from archsearch.errors import FileFormatError
from archsearch.model import LanguageModel
from archsearch.spec import ArchSpec
from operators.costs import model_weights
from operators.graph import Runner, check_model, random_weights, write_model
from operators.kinds import operator_for
from operators.specs import ModelDims
from tests.contracts.onnx_suite import OnnxSuite
from tests.contracts.operator_suite import OperatorCase, OperatorSuite

CASES = [OperatorCase(TokenShift(), TokenShiftSpec()), OperatorCase(TokenShift(), TokenShiftSpec(expand=0.5), ModelDims(hidden_size=40))]


class TestTokenShift(OperatorSuite):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request):
        return request.param


class TestTokenShiftInOnnx(OnnxSuite):
    @pytest.fixture(params=CASES, ids=str)
    def case(self, request):
        return request.param


def spec(**operator):
    layers = [{"operator": {"kind": "token_shift"} | operator}, {"operator": {"kind": "gqa", "heads": 4, "kv_heads": 2, "head_dim": 16}}]
    layers = [layer | {"ffn": {"intermediate_size": 96}} for layer in layers]
    return ArchSpec.from_dict({"name": "hybrid", "hidden_size": 64, "vocab_size": 50, "layers": layers})


def test_the_kind_is_known():
    assert isinstance(operator_for("token_shift"), TokenShift)


def test_specs_are_read_and_refused():
    assert spec(expand=0.5).pattern == "shift0.5, gqa2"
    assert ArchSpec.from_dict(spec(expand=0.5).to_dict()) == spec(expand=0.5)
    with pytest.raises(FileFormatError, match=r"layers\.0\.operator\.expand: must leave at least one channel, got 0\.0"):
        spec(expand=0.0)
    with pytest.raises(FileFormatError, match=r"layers\.0\.operator\.width: unknown key"):
        spec(width=3)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int4"])
def test_a_hybrid_model_is_right_in_onnx(precision, tmp_path):
    hybrid = spec()
    sizes = {"vocab_size": 50, "tie_embeddings": True}
    weights = random_weights(model_weights(hybrid.layers, hybrid.dims, **sizes), 0)
    write_model(tmp_path / "model.onnx", hybrid.layers, hybrid.dims, precision=precision, max_context=64, weights=weights, **sizes)
    check_model(tmp_path / "model.onnx", hybrid.layers, hybrid.dims, weights, precision=precision, **sizes)


def test_a_hybrid_model_is_the_same_in_torch_and_onnx(tmp_path):
    torch.manual_seed(0)
    model = LanguageModel(spec()).eval()
    ids_BT = np.random.default_rng(0).integers(0, 50, (2, 12))
    sizes = {"vocab_size": 50, "tie_embeddings": True}
    path, dims = tmp_path / "model.onnx", spec().dims
    write_model(path, spec().layers, dims, precision="fp32", max_context=64, weights=model.numpy_weights(), logits="all", **sizes)
    runner = Runner(path)
    runner.start(batch=2, capacity=12)
    with torch.no_grad():
        expected_BTV = model(torch.from_numpy(ids_BT))[0].numpy()
    np.testing.assert_allclose(runner.step(ids_BT), expected_BTV, rtol=1e-4, atol=1e-5)
