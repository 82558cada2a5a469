"""ONNX graphs of blocks, chains of blocks and whole models, with the runtime's fused operators and explicit caches."""

from operators.graph.builder import MICROSOFT, GraphBuilder
from operators.graph.check import check_blocks, check_model
from operators.graph.info import GraphInfo, GraphState, InputFeed, read_info
from operators.graph.model import chain_weights, random_weights, write_blocks, write_model
from operators.graph.run import Runner

__all__ = [
    "MICROSOFT",
    "GraphBuilder",
    "GraphInfo",
    "GraphState",
    "InputFeed",
    "Runner",
    "chain_weights",
    "check_blocks",
    "check_model",
    "random_weights",
    "read_info",
    "write_blocks",
    "write_model",
]
