from __future__ import annotations

import subprocess
import sys

import pytest

import normcore
from normcore import errors


def test_the_public_surface_is_this() -> None:
    assert set(normcore.__all__) == {
        *(
            "Moments",
            "MomentsStack",
            "NanPolicy",
            "merge",
            "merge_all",
            "moments_of",
            "pool",
            "scale",
            "variance",
            "violations",
        ),
        *(
            "Running",
            "RunningPolicy",
            "Estimate",
            "Cumulative",
            "Arrival",
            "BatchAverage",
            "BatchEma",
            "TimeEma",
            "Drift",
        ),
        *("standardize", "standardize_like", "unstandardize", "min_max", "unmin_max", "batch_norm", "batch_renorm"),
        *("by_own_statistics", "ToUnit", "ToRange", "ragged_row_norm"),
        *("layer_norm", "layer_norm_like", "rms_norm", "rms_norm_like", "Launch"),
        *("group_norm", "instance_norm", "adaptive_instance_norm", "instance_statistics"),
        *("mean_variance_norm", "lp_norm", "local_response_norm"),
        *("NormcoreError", "InvalidParameter", "NoInverse", "NonFinite", "NothingSeen", "ShapeMismatch"),
        *("TooFewValues", "drift", "errors", "layout", "moments", "normalize", "padding", "running"),
    }
    assert all(hasattr(normcore, name) for name in normcore.__all__)


def test_the_engine_knows_torch_alone() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import normcore;"
        "print({name.partition('.')[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "{'normcore'}"


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (errors.ShapeMismatch("x", ".shape[1] is 12"), "x.shape[1] is 12"),
        (errors.InvalidParameter("weights", "[2] is -1.0"), "weights[2] is -1.0"),
        (errors.InvalidParameter("eps", "is -1"), "eps is -1"),
        (errors.NothingSeen(3), "statistics of feature 3 are asked for, which has seen nothing; update first"),
    ],
)
def test_an_error_names_its_argument(error: errors.NormcoreError, sentence: str) -> None:
    assert str(error) == sentence
    assert str(error).startswith(error.argument)
    assert str(error).endswith(error.sentence)
