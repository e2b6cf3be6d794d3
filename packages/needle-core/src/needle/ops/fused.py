"""The backward pass of a fused operation, as an operation.

A fused operation computes at once what its `plain` states in plain operations. Its backward has a
kernel too. For everything beyond, the definition is enough: the gradient of the backward is found
by differentiating `plain` twice. So fused operations can be differentiated to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from .. import autograd, engine
from ..autograd import Spec, Tensor, TensorTuple, TensorTupleOp, constant, spec_of
from ..mode import current as mode


class FusedBackward(TensorTupleOp):
    """The gradients of a fused operation for some of its inputs.

    It is called with the operation's inputs, then the gradients of those outputs that have one,
    then whatever the forward pass has kept for its `compute`.
    """

    wrt: ClassVar[tuple[int, ...] | None] = None
    """The inputs that have gradients, one output each; None for all."""

    def __init__(self, op: Any, needs: Sequence[bool], given: Sequence[bool]) -> None:
        """`needs` says which inputs need a gradient, `given` which outputs have one."""
        self.op = op
        self.needs = tuple(needs)
        self.count = len(self.needs)
        self.given = tuple(given)

    @classmethod
    def apply(
        cls, op: Any, inputs: Sequence[Any], out_grads: Sequence[Tensor | None], kept: Sequence[Any]
    ) -> tuple[Tensor | None, ...]:
        """The gradient of `op` for each of its inputs; None for those it does not compute."""
        needs = [x.requires_grad for x in inputs]
        backward = cls(op, needs, [grad is not None for grad in out_grads])
        args = *inputs, *[grad for grad in out_grads if grad is not None], *kept
        found: Any
        if mode.walking and not autograd.LAZY_MODE:  # no node: nobody will ask for it
            arrays = backward.compute(*[arg.realize_cached_data() for arg in args])
            found = [constant(array) for array in arrays]
        else:
            found = backward(*args)
        grads: list[Tensor | None] = [None] * len(inputs)
        for i, grad in zip(backward.positions(), found, strict=True):
            grads[i] = grad
        return tuple(grads)

    def positions(self) -> tuple[int, ...]:
        """The inputs whose gradients this operation computes, in order."""
        return tuple(range(self.count)) if self.wrt is None else self.wrt

    def infer(self, *args: Tensor) -> tuple[Spec, ...]:
        return tuple([spec_of(args[i].shape, args[i].dtype) for i in self.positions()])

    def spread(self, grads: Sequence[Any]) -> list[Any]:
        """One entry per output, from the gradients of the outputs that have one."""
        waiting = iter(grads)
        return [next(waiting) if given else None for given in self.given]

    def plain(self, *args: Tensor) -> list[Tensor | None]:
        """The definition: the vector-Jacobian product of the operation's own definition."""
        grads = self.spread(args[self.count :])
        found = engine.plain_vjp(self.op.plain, args[: self.count], grads)
        return [found[i] for i in self.positions()]

    def gradient(self, out_grad: Any, node: TensorTuple) -> tuple[Tensor | None, ...]:
        used = self.count + sum(self.given)
        values = node.inputs
        grads = engine.plain_vjp(self.plain, values[:used], out_grad)
        return (*grads, *[None] * (len(values) - used))
