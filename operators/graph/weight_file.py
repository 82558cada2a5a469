"""The weights of a graph on their way to disk: written as they come, so that a model never has to fit in memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

EXTERNAL_ABOVE_BYTES = 64 << 20
"""Weights above this stay in a file of their own beside the model: protobuf ends at 2 GiB, and a file can be mapped."""
SMALL_BYTES = 1024
"""Tensors up to this are always in the model: shape inference looks at shapes and axes."""
ALIGNMENT = 4096
"""A page, so that the runtime can map every tensor instead of copying it."""


class WeightFile:
    """Initializers by name; the large ones lie in `NAME.data` until `close` decides where they stay."""

    def __init__(self, model: Path) -> None:
        self.path = model.with_name(model.name + ".data")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = model.with_name(f".{model.name}.{os.getpid()}.data")
        self._file = self._partial.open("w+b")
        self._tensors: dict[str, onnx.TensorProto] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def add(self, name: str, value: np.ndarray) -> None:
        value = np.ascontiguousarray(value)
        if value.nbytes <= SMALL_BYTES:
            self._tensors[name] = numpy_helper.from_array(value, name)
            return
        tensor = TensorProto(name=name, dims=value.shape, data_type=helper.np_dtype_to_tensor_dtype(value.dtype))
        self._file.seek(-self._file.tell() % ALIGNMENT, os.SEEK_CUR)
        entries = {"location": self.path.name, "offset": str(self._file.tell()), "length": str(value.nbytes)}
        self._file.write(value.data.cast("B"))
        tensor.data_location = TensorProto.EXTERNAL
        for key, entry in entries.items():
            tensor.external_data.add(key=key, value=entry)
        self._tensors[name] = tensor

    def close(self) -> list[onnx.TensorProto]:
        """The initializers; large weights are in place beside the model, or few enough to be put into it."""
        if self._file.tell() > EXTERNAL_ABOVE_BYTES:
            self._file.close()
            self._partial.replace(self.path)
        else:
            for tensor in self._tensors.values():
                if tensor.data_location == TensorProto.EXTERNAL:
                    where = {entry.key: entry.value for entry in tensor.external_data}
                    self._file.seek(int(where["offset"]))
                    tensor.raw_data = self._file.read(int(where["length"]))
                    del tensor.external_data[:]
                    tensor.data_location = TensorProto.DEFAULT
            self.discard()
            self.path.unlink(missing_ok=True)  # of an older model of this name
        return list(self._tensors.values())

    def discard(self) -> None:
        """Leave nothing unfinished behind."""
        self._file.close()
        self._partial.unlink(missing_ok=True)
