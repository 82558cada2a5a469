"""Our operators as ONNX graphs: the contract of `OnnxSuite`, for each."""

import pytest

from tests.contracts.onnx_suite import OnnxSuite
from tests.operators.cases import GLA, GQA, SHORT_CONV, SWA


class TestShortConv(OnnxSuite):
    @pytest.fixture(params=SHORT_CONV, ids=str)
    def case(self, request):
        return request.param


class TestGqa(OnnxSuite):
    @pytest.fixture(params=GQA, ids=str)
    def case(self, request):
        return request.param


class TestSwa(OnnxSuite):
    @pytest.fixture(params=SWA, ids=str)
    def case(self, request):
        return request.param


class TestGla(OnnxSuite):
    @pytest.fixture(params=GLA, ids=str)
    def case(self, request):
        return request.param
