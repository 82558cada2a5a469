"""The specs that every contract is tried with: one list for torch and for ONNX."""

from __future__ import annotations

from operators.builtin import Gla, Gqa, ShortConv, Swa
from operators.specs import GlaSpec, GqaSpec, ModelDims, ShortConvSpec, SwaSpec
from tests.contracts.operator_suite import OperatorCase

WIDE = ModelDims(hidden_size=40, norm_eps=1e-3, rope_theta=100.0)
QUERIES_AND_KEYS = ("q_proj.weight", "k_proj.weight", "q_layernorm.weight", "k_layernorm.weight")

SHORT_CONV = [
    OperatorCase(ShortConv(), ShortConvSpec(kernel_size=2)),
    OperatorCase(ShortConv(), ShortConvSpec(kernel_size=3)),
    OperatorCase(ShortConv(), ShortConvSpec(kernel_size=7), ModelDims(hidden_size=10)),
]

GQA = [
    OperatorCase(Gqa(), GqaSpec(heads=4, kv_heads=2, head_dim=16)),
    OperatorCase(Gqa(), GqaSpec(heads=3, kv_heads=3, head_dim=16)),  # multi-head
    OperatorCase(Gqa(), GqaSpec(heads=4, kv_heads=1, head_dim=16), WIDE),  # multi-query
]

SWA = [
    OperatorCase(Swa(), SwaSpec(heads=4, kv_heads=2, head_dim=16, window=1), idle=QUERIES_AND_KEYS),
    OperatorCase(Swa(), SwaSpec(heads=4, kv_heads=2, head_dim=16, window=5)),
    OperatorCase(Swa(), SwaSpec(heads=4, kv_heads=2, head_dim=16, window=16)),  # the narrowest whose cache has slack
    OperatorCase(Swa(), SwaSpec(heads=2, kv_heads=1, head_dim=16, window=64), WIDE),
    OperatorCase(Swa(), SwaSpec(heads=3, kv_heads=3, head_dim=16, window=70)),  # as long as the longest sequence tried
    OperatorCase(Swa(), SwaSpec(heads=4, kv_heads=2, head_dim=16, window=1000)),
]

GLA = [
    OperatorCase(Gla(), GlaSpec(heads=1)),
    OperatorCase(Gla(), GlaSpec(heads=4)),
    OperatorCase(Gla(), GlaSpec(heads=2, expand_k=1.0, expand_v=2.0, gate_rank=4, gate_normalizer=1.0), WIDE),
]

ALL = [*SHORT_CONV, *GQA, *SWA, *GLA]
