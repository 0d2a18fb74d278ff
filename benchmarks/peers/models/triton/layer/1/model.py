"""Layer norm as a model of Triton's python backend: torch, on all cores.

Requests of a batch are computed one by one: joining them first was no faster with 16 of 4 KiB or of 1 MiB.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import triton_python_backend_utils as backend
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[4] / "drivers"))
import workload

WEIGHT, BIAS = torch.from_numpy(workload.WEIGHT), torch.from_numpy(workload.BIAS)


class TritonPythonModel:
    def execute(self, requests):
        return [backend.InferenceResponse([self._normalized(request)]) for request in requests]

    def _normalized(self, request):
        x = torch.from_numpy(backend.get_input_tensor_by_name(request, "x").as_numpy())
        y = F.layer_norm(x, (workload.FEATURES,), WEIGHT, BIAS, workload.EPS)
        return backend.Tensor("y", y.numpy())
