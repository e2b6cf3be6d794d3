"""For tests of operations: cases with oracles, and gradient checks.

for case in CASES:
    check_value(case, device, "float32")
    check_gradients(case, device)
    check_second_gradients(case, device)
"""

from ..backend_ndarray.testing import (
    VIEWS,
    Target,
    array_devices,
    compare,
    make_view,
    rounding,
    targets,
)
from .case import OpCase
from .cases import CASES
from .check import (
    check_gradients,
    check_second_gradients,
    check_value,
    gradient_check,
    second_gradient_check,
)

__all__ = [
    "CASES",
    "VIEWS",
    "OpCase",
    "Target",
    "array_devices",
    "check_gradients",
    "check_second_gradients",
    "check_value",
    "compare",
    "gradient_check",
    "make_view",
    "rounding",
    "second_gradient_check",
    "targets",
]
