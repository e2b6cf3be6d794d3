"""OpCase: everything that is known about one operation, in one record."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from ..autograd import Op

Arrays: TypeAlias = "tuple[np.ndarray[Any, Any], ...]"


@dataclass(frozen=True)
class OpCase:
    """One operation with inputs and an oracle; drives tests, gradient checks and benchmarks.

    Attributes:
        name: the case's id.
        op: the class it is a case of.
        call: Tensors in, a Tensor or TensorTuple out.
        oracle: the same on NumPy arrays in float64; an array, or a tuple of them.
        inputs: makes the inputs from a random generator: float64, or integers for ids. They lie
            away from kinks, and are small, for the gradient checks.
        large: makes inputs worth timing; None where the operation is no benchmark.
        roundings: the bound of the relative error, in roundings of the largest intermediate.
        scale: the size of the largest intermediate, where sums cancel; 0 for a purely relative
            bound.
        flops: how many floating-point operations the inputs cost.
    """

    name: str
    op: type[Op]
    call: Callable[..., Any]
    oracle: Callable[..., Any]
    inputs: Callable[[np.random.Generator], Arrays]
    large: Callable[[np.random.Generator], Arrays] | None = None
    roundings: float = 8.0
    scale: float = 1.0
    flops: Callable[..., float] = lambda *arrays: float(arrays[0].size)

    def arrays(self, large: bool = False) -> Arrays:
        """The inputs, the same each time."""
        make = self.large if large and self.large is not None else self.inputs
        return make(np.random.default_rng(sum(map(ord, self.name))))

    def bytes(self, arrays: Arrays, itemsize: int) -> int:
        """The least memory traffic: every input read and every output written once."""
        outputs = self.oracle(*arrays)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return itemsize * sum(int(np.asarray(a).size) for a in (*arrays, *outputs))

    def __str__(self) -> str:
        return self.name
