"""What is NaN or infinite is named."""

import json
import math

import torch
from segarena.common.finite import known, not_finite, not_finite_tensor


def test_nan_is_null_in_a_file_and_every_other_value_itself():
    assert [known(value) for value in (0.0, 0.25, math.nan)] == [0.0, 0.25, None]
    assert json.dumps(known(torch.tensor(0.5).numpy())) == "0.5"


def test_scalars_and_tensors_that_are_not_finite_are_named():
    assert not_finite({"loss": math.nan, "norm": 1.0, "value": math.inf}) == ["loss is nan", "value is inf"]
    assert not_finite_tensor({"bias": torch.zeros(3), "count": torch.ones(2, dtype=torch.int64)}) is None
    broken = {"bias": torch.zeros(3), "weight": torch.tensor([1.0, math.nan, math.inf])}
    assert not_finite_tensor(broken) == "weight holds 2 numbers, of 3, that are NaN or infinite"
