"""Layer norm as an MLServer runtime, by torch on one thread: nearly all of a call is Python around it.

What it makes is not validated again, and the codec for arrays is not used: both cost, and neither is needed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput, TensorData
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "drivers"))
import workload

WEIGHT, BIAS = torch.from_numpy(workload.WEIGHT), torch.from_numpy(workload.BIAS)
torch.set_num_threads(1)


class Layer(MLModel):
    async def load(self):
        return True

    async def predict(self, payload):
        (given,) = payload.inputs
        opaque = given.datatype == "BYTES"
        values = given.data.root
        x = np.frombuffer(values[0], np.float32) if opaque else np.array(values, np.float32)
        x = torch.from_numpy(x.reshape(-1, workload.FEATURES))
        y = F.layer_norm(x, (workload.FEATURES,), WEIGHT, BIAS, workload.EPS).numpy()
        data = TensorData.model_construct(root=[y.tobytes()] if opaque else y.ravel().tolist())
        output = ResponseOutput.model_construct(
            name="y", shape=[1] if opaque else y.shape, datatype=given.datatype, parameters=None, data=data
        )
        return InferenceResponse.model_construct(model_name=self.name, outputs=[output], parameters=None)
