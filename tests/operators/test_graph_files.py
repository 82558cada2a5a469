"""The files: what they say of themselves, where weights lie, what is refused, and that nothing half-written is left."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from operators.costs import BITS, block_costs, group_size, model_weights
from operators.graph import Runner, chain_weights, random_weights, read_info, weight_file, write_blocks, write_model
from operators.graph.check import run_in_steps
from operators.specs import PRECISIONS, BlockSpec, FfnSpec, GlaSpec, GqaSpec, GraphError, ModelDims, ShortConvSpec, SpecError, SwaSpec

DIMS = ModelDims(hidden_size=64)
FFN = FfnSpec(intermediate_size=96)
CONV, GLA = (BlockSpec(operator=spec, ffn=FFN) for spec in (ShortConvSpec(kernel_size=3), GlaSpec(heads=4)))
GQA = BlockSpec(operator=GqaSpec(heads=4, kv_heads=2, head_dim=16), ffn=FFN)
SWA = BlockSpec(operator=SwaSpec(heads=4, kv_heads=2, head_dim=16, window=8), ffn=FFN)
ALL = (CONV, SWA, GLA, GQA)
V = 50


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.onnx"


def chain(path, blocks=ALL, **options):
    return write_blocks(path, blocks, DIMS, **({"precision": "int4", "max_context": 64} | options))


def model(path, blocks=ALL, **options):
    defaults = {"vocab_size": V, "tie_embeddings": True, "precision": "int4", "max_context": 64}
    return write_model(path, blocks, DIMS, **(defaults | options))


def initializers(path):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


# -- what a file says ------------------------------------------------------------------------------------------------------------


def test_inputs_and_outputs_have_the_published_names(path):
    info = model(path)
    loaded = onnx.load(path).graph
    assert [value.name for value in loaded.input] == [
        "input_ids",
        "past_conv.0",
        "past_key_values.1.key",
        "past_key_values.1.value",
        "attention_mask",
        "past_gla.2",
        "past_key_values.3.key",
        "past_key_values.3.value",
    ]
    states = ["present_conv.0", "present.1.key", "present.1.value", "present_gla.2", "present.3.key", "present.3.value"]
    assert {value.name for value in loaded.output} == {"logits", *states}
    assert [state.output for state in info.states] == states
    assert [state.shared for state in info.states] == [False, True, True, False, True, True]
    assert info.output == "logits"
    assert info.vocab_size == V


def test_a_file_tells_what_it_is(path):
    metadata = read_info(model(path, precision="int8").path).metadata
    assert metadata["archsearch.subject"] == "model"
    assert metadata["archsearch.precision"] == "int8"
    assert metadata["archsearch.max_context"] == "64"
    assert json.loads(metadata["archsearch.dims"]) == {"hidden_size": 64, "norm_eps": 1e-5, "rope_theta": 1e6}
    assert json.loads(metadata["archsearch.blocks"])[1] == {
        "operator": {"kind": "swa", "heads": 4, "kv_heads": 2, "head_dim": 16, "window": 8},
        "ffn": {"intermediate_size": 96},
    }


def test_feeds_describe_every_input(path):
    feeds = {feed.name: feed for feed in model(path).feeds(batch=1, tokens=3, context=20)}
    assert set(feeds) == {value.name for value in onnx.load(path).graph.input}
    assert feeds["input_ids"].shape == (1, 3)
    assert (feeds["input_ids"].dtype, feeds["input_ids"].fill, feeds["input_ids"].high) == ("int64", "integers", V)
    assert (feeds["attention_mask"].shape, feeds["attention_mask"].fill, feeds["attention_mask"].value) == ((1, 23), "constant", 1.0)
    assert feeds["past_key_values.3.key"].shape == (1, 2, 23, 16)
    assert feeds["past_key_values.1.key"].shape == (1, 2, 8, 16)
    assert {feeds[name].fill for name in feeds if name.startswith("past")} == {"normal"}
    empty = {feed.name: feed for feed in read_info(path).feeds(batch=2, tokens=5, context=0)}
    assert {empty[name].fill for name in empty if name.startswith("past")} == {"zeros"}
    assert empty["past_conv.0"].shape == (2, 2, 64)


@pytest.mark.parametrize("blocks", [(CONV,), (GLA,), (CONV, GLA)], ids=["conv", "gla", "both"])
def test_without_attention_there_is_no_mask(path, blocks):
    assert "attention_mask" not in {value.name for value in chain(path, blocks).inputs}


def test_too_many_positions_are_refused(path):
    info = chain(path)
    info.feeds(batch=1, tokens=1, context=63)
    with pytest.raises(GraphError, match="holds 64 positions, 65 are asked for"):
        info.feeds(batch=1, tokens=1, context=64)


def test_chunks_of_a_batch_are_refused_with_attention_only(path):
    with pytest.raises(GraphError, match="several tokens after a context for one sequence only"):
        chain(path).feeds(batch=2, tokens=2, context=5)
    blocks = (CONV, GLA)
    info = chain(path, blocks, precision="fp32", weights=random_weights(chain_weights(blocks, DIMS), 0))
    x_BTD = np.random.default_rng(0).standard_normal((2, 9, 64)).astype(np.float32)
    runner = Runner(info.path)
    whole = run_in_steps(runner, x_BTD, 9)
    runner.start(batch=2, capacity=9)
    assert np.allclose(np.concatenate([runner.step(x_BTD[:, :4]), runner.step(x_BTD[:, 4:])], axis=1), whole, atol=1e-5)


def test_a_full_cache_is_refused(path):
    runner = Runner(model(path).path)
    runner.start(batch=1, capacity=4)
    runner.step(np.zeros((1, 4), int))
    with pytest.raises(GraphError, match="room for 4 positions, 5 are asked for"):
        runner.step(np.zeros((1, 1), int))


def test_last_logits_are_the_last_of_all(tmp_path):
    ids = np.random.default_rng(0).integers(0, V, (2, 12))
    outputs = []
    for logits in ("last", "all"):
        runner = Runner(model(tmp_path / f"{logits}.onnx", logits=logits, precision="fp32").path)
        runner.start(batch=2, capacity=12)
        outputs.append(runner.step(ids))
    assert outputs[0].shape == (2, 1, V)
    assert outputs[1].shape == (2, 12, V)
    assert np.allclose(outputs[0][:, 0], outputs[1][:, -1], atol=1e-5)


# -- weights ---------------------------------------------------------------------------------------------------------------------


def test_random_weights_differ_between_layers_and_seeds_and_not_between_runs(tmp_path):
    first = initializers(chain(tmp_path / "a.onnx", (CONV, CONV), precision="fp32", seed=1).path)
    again = initializers(chain(tmp_path / "b.onnx", (CONV, CONV), precision="fp32", seed=1).path)
    other = initializers(chain(tmp_path / "c.onnx", (CONV, CONV), precision="fp32", seed=2).path)
    layers = [name for name in first if name.startswith("layers.0.")]
    assert len(layers) == 7
    for name in layers:
        assert np.array_equal(first[name], again[name])
        assert not np.array_equal(first[name], other[name])
        assert not np.array_equal(first[name], first[name.replace("layers.0", "layers.1")])


def test_random_weights_keep_activations_of_order_one():
    weights = random_weights(model_weights(ALL, DIMS, vocab_size=4000, tie_embeddings=True), 0)
    for name, value in weights.items():
        size = np.prod(value.shape[1:]) if value.ndim > 1 else 1
        if "norm" in name:
            assert abs(value.mean() - 1) < 0.1
        elif value.size > 1000:
            assert abs(value.std() * size**0.5 - 1) < 0.05
            assert abs(value.mean()) * size**0.5 < 0.1


@pytest.mark.parametrize("precision", PRECISIONS)
def test_large_weights_lie_beside_the_model(path, precision, monkeypatch):
    inside = model(path, precision=precision).path
    expected, alone = initializers(inside), np.zeros((1, 5), int)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    runner = Runner(path)
    runner.start(batch=1, capacity=5)
    logits = runner.step(alone)
    del runner

    monkeypatch.setattr(weight_file, "EXTERNAL_ABOVE_BYTES", 0)
    model(path, precision=precision)
    assert sorted(file.name for file in path.parent.iterdir()) == ["model.onnx", "model.onnx.data"]
    found = initializers(path)
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[name], expected[name]) for name in found)
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        where = {entry.key: entry.value for entry in tensor.external_data}
        assert not where or int(where["offset"]) % 4096 == 0
    runner = Runner(path)
    runner.start(batch=1, capacity=5)
    assert np.array_equal(runner.step(alone), logits)

    monkeypatch.undo()
    model(path, precision=precision)
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_tied_embedding_is_stored_once(path, precision):
    """In the file, and in what the runtime makes of it: constant folding must not give the head a copy."""
    rows = 4096
    tied = sum(tensor.nbytes for tensor in initializers(model(path, (), precision=precision, vocab_size=rows).path).values())
    embedding, _ = model_weights((), DIMS, vocab_size=rows, tie_embeddings=True)
    bits, columns = BITS[precision], embedding.shape[1]
    # Scales are there in the two shapes that the two operators ask for.
    scales = 0 if precision == "fp32" else 2 * embedding.size // group_size(precision, columns) * 4
    assert embedding.size * bits // 8 + scales <= tied < embedding.size * bits // 8 + scales + 2000

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(path.with_name("optimized.onnx"))
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    kept = sum(tensor.nbytes for tensor in initializers(path.with_name("optimized.onnx")).values())
    assert kept <= tied + 2000


def test_rotary_tables_are_shared_by_all_layers(path):
    names = initializers(chain(path, (GQA, SWA, GQA), max_context=30).path)
    tables = {name: value.shape for name, value in names.items() if name.startswith("rotary")}
    assert tables == {"rotary16.cos": (30, 8), "rotary16.sin": (30, 8)}


@pytest.mark.parametrize("block", ALL, ids=lambda block: block.operator.kind)
def test_fused_operators_are_used(path, block):
    fused = {"short_conv": "CausalConvWithState", "gqa": "GroupQueryAttention", "swa": "GroupQueryAttention", "gla": "LinearAttention"}
    kinds = [node.op_type for node in onnx.load(chain(path, (block, block)).path).graph.node]
    assert kinds.count(fused[block.operator.kind]) == 2
    assert kinds.count("SkipSimplifiedLayerNormalization") == 3  # four norms, and the first has nothing to add
    assert kinds.count("MatMulNBits") == 2 * 4


# -- what is refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", [chain, model])
def test_a_missing_weight_is_named_and_nothing_is_left(path, writer):
    weights = dict(random_weights(model_weights(ALL, DIMS, vocab_size=V, tie_embeddings=True), 0))
    del weights["layers.2.ffn.w3.weight"]
    with pytest.raises(GraphError, match=r"no weight 'layers\.2\.ffn\.w3\.weight' was given"):
        writer(path, weights=weights)
    assert list(path.parent.iterdir()) == []


def test_a_weight_of_another_shape_is_named(path):
    weights = dict(random_weights(chain_weights(ALL, DIMS), 0))
    weights["layers.0.ffn.w2.weight"] = weights["layers.0.ffn.w2.weight"].T
    with pytest.raises(GraphError, match=r"'layers\.0\.ffn\.w2\.weight' has the shape \(96, 64\), not \(64, 96\)"):
        chain(path, weights=weights)


def test_a_failure_leaves_the_older_model_as_it_was(path):
    chain(path)
    before = path.read_bytes()
    with pytest.raises(GraphError):
        chain(path, weights={})
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_impossible_operators_are_refused(path):
    with pytest.raises(SpecError, match="kv_heads: 4 heads do not divide among 3"):
        chain(path, (BlockSpec(operator=GqaSpec(heads=4, kv_heads=3, head_dim=16), ffn=FFN),))
    assert list(path.parent.iterdir()) == []


def test_a_context_of_nothing_is_refused(path):
    with pytest.raises(GraphError, match="max_context: must be at least 1, got 0"):
        chain(path, max_context=0)


# -- files of others -------------------------------------------------------------------------------------------------------------


def foreign(path, *, rename=None, drop_outputs=(), cache="past_sequence_length", attention="GroupQueryAttention"):
    """One of our models with the metadata taken off and the names of dimensions as published models have them."""
    loaded = onnx.load(model(path).path)
    del loaded.metadata_props[:]
    dimensions = {"batch": "batch_size", "tokens": "sequence_length", "total": "total_sequence_length", "cache": cache}
    for value in (*loaded.graph.input, *loaded.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dimensions[dim.dim_param]
    for node in loaded.graph.node:
        node.input[:] = [rename[name] if rename and name in rename else name for name in node.input]
        node.op_type = attention if node.op_type == "GroupQueryAttention" else node.op_type
    for value in loaded.graph.input:
        value.name = rename[value.name] if rename and value.name in rename else value.name
    kept = [value for value in loaded.graph.output if value.name not in drop_outputs]
    del loaded.graph.output[:]
    loaded.graph.output.extend(kept)
    loaded.graph.input.append(helper.make_tensor_value_info("position_ids", TensorProto.INT64, ["batch_size", "sequence_length"]))
    onnx.save(loaded, path)
    return path


def test_a_foreign_file_is_read_by_the_published_names(path):
    own = model(path)
    runner = Runner(path)
    runner.start(batch=1, capacity=6)
    expected = [runner.step(np.full((1, 4), 7)), runner.step(np.full((1, 1), 9))]
    info = read_info(foreign(path))
    assert info.states == own.states
    assert info.vocab_size == V
    assert info.max_context is None
    feeds = {feed.name: feed.shape for feed in info.feeds(batch=1, tokens=1, context=20)}
    assert feeds["past_key_values.3.key"] == (1, 2, 21, 16)
    assert feeds["position_ids"] == (1, 1)
    assert feeds["attention_mask"] == (1, 21)
    runner = Runner(path)
    runner.start(batch=1, capacity=6)
    found = [runner.step(np.full((1, 4), 7)), runner.step(np.full((1, 1), 9))]
    assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rename": {"input_ids": "tokens"}}, "the input 'tokens' is not one of a decoder with caches"),
        ({"drop_outputs": {"present_conv.0"}}, r"the state 'past_conv\.0' has no output 'present_conv\.0'"),
        ({"drop_outputs": {"logits"}}, "has no output beside its caches"),
        ({"attention": "Attention"}, "caches grow without GroupQueryAttention"),
    ],
    ids=["another input", "a state without output", "no logits", "growing caches"],
)
def test_files_that_are_no_decoders_are_refused(path, change, problem):
    with pytest.raises(GraphError, match=problem):
        read_info(foreign(path, **change))


@pytest.mark.parametrize("content", [None, b"", b"\x00\xff not a model", b"<html></html>"], ids=["missing", "empty", "binary", "text"])
def test_what_is_no_onnx_file_is_refused(path, content):
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(GraphError, match=r"model\.onnx: (cannot be read as ONNX|holds no graph)"):
        read_info(path)


# -- memory that a cache takes ---------------------------------------------------------------------------------------------------


def test_a_windowed_cache_does_not_grow_with_the_context(path):
    info = chain(path, (SWA,), max_context=5000)
    for context in (10, 4000):
        feeds = info.feeds(batch=1, tokens=1, context=context)
        assert [feed.shape for feed in feeds if feed.name.startswith("past")] == [(1, 2, 8, 16)] * 2
    assert block_costs(SWA, DIMS).state_bytes(batch=1, cache=4001) == 2 * 4 * 2 * 8 * 16
