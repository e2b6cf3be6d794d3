"""What every optimizer shares: the parameters, their gradients and the saved state."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np

from needle import backend_ndarray as nd
from needle.autograd import Tensor
from needle.backend_ndarray import DeviceError, DTypeError, NDArray, ShapeError
from needle.checks import NOT_NEGATIVE, check_number, check_switch
from needle.nn.state import (
    array_of,
    check_mapping,
    check_state,
    copy_of,
    replace,
    to_numpy,
)

__all__ = ["Optimizer"]

Ranges = Mapping[str, tuple[float, float, str]]
"""For each hyper-parameter the least and the greatest value, and the rule in words."""


class Optimizer:
    """Updates parameters from their gradients, in place, outside any graph.

    A parameter without a gradient is left alone, and its state too. Each parameter counts its own
    steps. Hyper-parameters are attributes and may be changed between steps (`opt.lr = 0.1`).

    A subclass names its hyper-parameters in `ranges` and `switches`, its state arrays in `slots`,
    and defines `_update`.

    Raises:
        TypeError: params is not an iterable of Tensors, or a hyper-parameter of the wrong kind.
        DTypeError: one of them is not of floats.
        ValueError: params is empty, one of them is the result of an operation, or a
            hyper-parameter is out of range.
    """

    ranges: ClassVar[Ranges] = {}
    switches: ClassVar[tuple[str, ...]] = ()  # hyper-parameters that are True or False
    slots: ClassVar[tuple[str, ...]] = ()

    def __init__(self, params: Iterable[Tensor], **hyper: float) -> None:
        for name, value in self._checked(hyper).items():
            setattr(self, name, value)
        self.params = _checked_params(type(self).__name__, params)
        self.steps = [0] * len(self.params)
        for slot in self.slots:
            setattr(self, slot, [_zeros_like(p) for p in self.params])

    def step(self) -> None:
        """Updates every parameter that has a gradient.

        Raises:
            ValueError: a hyper-parameter was set out of range.
            TypeError: a gradient is not a Tensor, or a hyper-parameter was set to no number.
            ShapeError, DeviceError: a gradient is unlike its parameter.
        """
        self._checked(self._hyper())
        gradients = self._gradients()
        for group in self._groups(gradients):
            weights = [_writable(self.params[i]) for i in group]
            state = [self._slot(slot, group, weights) for slot in self.slots]
            self._run(group, weights, state, [gradients[i] for i in group])

    def _run(
        self,
        group: list[int],
        weights: list[NDArray],
        state: list[list[NDArray]],
        gradients: list[NDArray],
    ) -> None:
        """One step of a group; while a graph is recorded, what each replay of it does."""
        graph = nd.recording_graph()
        if graph is None:
            self._update(weights, state, gradients, self.steps[group[0]] + 1)
            self._count(group)
            return
        with graph.with_scalars(lambda: self._scalars(self._count(group))):
            self._update(weights, state, gradients, self.steps[group[0]] + 1)

    def _count(self, group: list[int]) -> int:
        """Counts a step of the group's parameters, and returns its number."""
        for i in group:
            self.steps[i] += 1
        return self.steps[group[0]]

    def _scalars(self, step: int) -> tuple[float, ...]:
        """The scalars that `_update` gives its kernel at this step: a replayed graph asks."""
        raise NotImplementedError(f"{type(self).__name__}: _scalars is not defined: define it")

    def _update(
        self,
        weights: list[NDArray],
        state: list[list[NDArray]],
        gradients: list[NDArray],
        step: int,
    ) -> None:
        """Writes the new weights and state of parameters of one dtype at the same step."""
        raise NotImplementedError(f"{type(self).__name__}: _update is not defined: define it")

    def reset_grad(self) -> None:
        """Drops all gradients: `grad` is None until the next backward."""
        for parameter in self.params:
            parameter.grad = None

    def clip_grad_norm(self, max_norm: float = 0.25) -> float | Tensor:
        """Scales all gradients so that their global L2 norm is at most max_norm.

            norm = sqrt(sum of all squares);  grad *= min(1, max_norm / (norm + 1e-6))

        Returns the norm before clipping: a number, but a Tensor while a CUDA graph is recorded,
        when there is no number yet. Gradients are replaced, not written to: they may share
        memory with each other or with a Tensor of the user's.

        Raises:
            TypeError: max_norm is not a number, or a gradient not a Tensor.
            ValueError: max_norm is below 0, or infinite.
            ShapeError, DeviceError: a gradient is unlike its parameter.

        Source: Pascanu et al., On the difficulty of training recurrent neural networks, 2013; the
        1e-6 is PyTorch's.
        """
        op = f"{type(self).__name__}.clip_grad_norm"
        max_norm = check_number(op, "max_norm", max_norm, *NOT_NEGATIVE)
        gradients = self._gradients()
        groups = self._groups(gradients)
        if nd.recording_graph() is not None:
            return self._clip_on_device(max_norm, gradients)
        norm = math.sqrt(sum(nd.sum_squares([gradients[i] for i in group]) for group in groups))
        scale = max_norm / (norm + 1e-6)
        if not scale >= 1:  # a norm of NaN must show in the gradients, so it takes this way too
            for i, gradient in gradients.items():
                self.params[i].grad = Tensor(gradient * scale, requires_grad=False)
        return norm

    def _clip_on_device(self, max_norm: float, gradients: Mapping[int, NDArray]) -> Tensor:
        """clip_grad_norm without a look at the norm."""
        first, *others = nd.partial_sum_squares(list(gradients.values()))
        norm = nd.sqrt(sum(others, first))
        scale = nd.minimum(nd.divide(max_norm, norm + 1e-6), 1.0)
        for i, gradient in gradients.items():
            scaled = gradient * scale.astype(gradient.dtype)
            self.params[i].grad = Tensor(scaled, requires_grad=False)
        return Tensor(norm, requires_grad=False)

    # ---- gradients ----------------------------------------------------------------------------

    def _gradients(self) -> dict[int, NDArray]:
        """Returns the gradient array of each parameter that has one, in the parameter's dtype."""
        gradients: dict[int, NDArray] = {}
        for i, parameter in enumerate(self.params):
            grad: object = parameter.grad  # the attribute takes whatever it is given
            if grad is None:
                continue
            if not isinstance(grad, Tensor):
                raise TypeError(
                    f"{type(self).__name__}: the grad of parameter {i} is a "
                    f"{type(grad).__name__}: need a Tensor"
                )
            gradient, weight = array_of(grad), array_of(parameter)
            if gradient._shape != weight._shape or gradient._device is not weight._device:
                self._check_gradient(i, gradient, weight)
            if gradient._dtype is not weight._dtype:
                gradient = gradient.astype(weight.dtype)
            gradients[i] = gradient
        return gradients

    def _check_gradient(self, i: int, gradient: NDArray, weight: NDArray) -> None:
        op = type(self).__name__
        if gradient.shape != weight.shape:
            raise ShapeError(
                f"{op}: shapes differ: parameter {i} is {weight.shape}, its grad "
                f"{gradient.shape}: need equal shapes"
            )
        if gradient.device != weight.device:
            raise DeviceError(
                f"{op}: devices differ: parameter {i} is on {weight.device}, its grad on "
                f"{gradient.device}: need the same device"
            )

    def _groups(self, gradients: Mapping[int, NDArray]) -> list[list[int]]:
        """Splits parameters into groups that one kernel call can update together.

        A group has one device, dtype and step count, and no storage twice: the kernel's threads
        write all of it at once.
        """
        groups: dict[Any, list[int]] = {}
        uses: dict[int, int] = {}
        for i in gradients:
            weight = array_of(self.params[i])
            storage = weight._handle.address
            uses[storage] = use = uses.get(storage, 0) + 1
            key = (weight._device.name, weight._dtype, self.steps[i], use)
            groups.setdefault(key, []).append(i)
        return list(groups.values())

    def _slot(self, slot: str, group: list[int], weights: list[NDArray]) -> list[NDArray]:
        """Returns the state arrays of a group, each moved along if its parameter has moved."""
        tensors: list[Tensor] = getattr(self, slot)
        arrays = [array_of(tensors[i]) for i in group]
        for k, (array, weight) in enumerate(zip(arrays, weights, strict=True)):
            if array._device is not weight._device or array._dtype is not weight._dtype:
                arrays[k] = NDArray(array, device=weight.device, dtype=weight.dtype)
                replace(tensors[group[k]], arrays[k])
        return arrays

    # ---- saving and loading -------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns the hyper-parameters as floats, and copies of `steps` and the state arrays.

        The name of an array is its slot and its parameter's number: `u.0`. A switch is 0.0 or 1.0.
        """
        state: dict[str, Any] = {name: float(value) for name, value in self._hyper().items()}
        return state | {name: copy_of(tensor) for name, tensor in self._arrays()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` of an optimizer of the same parameters gave out.

        Everything is checked before anything is written. A switch that the state does not name
        stays as it is.

        Raises:
            KeyError: a name is missing or unexpected.
            TypeError, ValueError: a value is of the wrong kind or out of range.
            ShapeError, DTypeError: an array has another shape or dtype.
        """
        op = f"{type(self).__name__}.load_state_dict"
        check_mapping(op, state)
        arrays = dict(self._arrays())
        present = self._hyper()
        lacking = [name for name in self.ranges if name not in state]
        if lacking:
            raise KeyError(f"{op}: names differ: missing {lacking}: need {list(self.ranges)}")
        hyper = self._checked({name: state.get(name, value) for name, value in present.items()})
        check_state(op, arrays, {k: v for k, v in state.items() if k not in present})
        steps = [int(n) for n in to_numpy(state["steps"])]
        if min(steps) < 0:
            raise ValueError(f"{op}: steps is {steps}: need numbers >= 0")
        for name, value in hyper.items():
            setattr(self, name, value)
        self.steps = steps
        for name, tensor in arrays.items():
            values = to_numpy(state[name])
            replace(tensor, NDArray(values, device=tensor.device, dtype=tensor.dtype))

    def _arrays(self) -> Iterator[tuple[str, Tensor]]:
        steps = np.array(self.steps, dtype="int64")
        weights = [array_of(parameter) for parameter in self.params]
        yield "steps", Tensor(steps, device=nd.cpu(), dtype="int64", requires_grad=False)
        for slot in self.slots:
            self._slot(slot, list(range(len(weights))), weights)
            for i, tensor in enumerate(getattr(self, slot)):
                yield f"{slot}.{i}", tensor

    # ---- checks and printing ------------------------------------------------------------------

    def _hyper(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*self.ranges, *self.switches)}

    def _checked(self, hyper: Mapping[str, Any]) -> dict[str, float]:
        """The hyper-parameters as floats and bools."""
        op = type(self).__name__
        numbers = {
            name: check_number(op, name, hyper[name], *self.ranges[name]) for name in self.ranges
        }
        return numbers | {name: check_switch(op, name, hyper[name]) for name in self.switches}

    def __repr__(self) -> str:
        shown = {name: value for name, value in self._hyper().items() if value is not False}
        settings = ", ".join(f"{name}={value}" for name, value in shown.items())
        return f"{type(self).__name__}({len(self.params)} parameters, {settings})"


def _checked_params(op: str, params: Iterable[Tensor]) -> list[Tensor]:
    """Returns the parameters, each once, in order."""
    if isinstance(params, Tensor) or not isinstance(params, Iterable):
        kind = type(params).__name__
        raise TypeError(f"{op}: params is a {kind}: need an iterable of Tensors")
    once: dict[int, Tensor] = {}
    candidates: Iterable[object] = params
    for i, parameter in enumerate(candidates):
        if not isinstance(parameter, Tensor):
            kind = type(parameter).__name__
            raise TypeError(f"{op}: parameter {i} is a {kind}: need a Tensor")
        if parameter.dtype.kind != "f":
            raise DTypeError(f"{op}: parameter {i} is {parameter.dtype}: need float32 or float64")
        if not parameter.is_leaf():
            raise ValueError(
                f"{op}: parameter {i} {tuple(parameter.shape)} is the result of an operation: "
                f"need a leaf, to whom backward gives a grad"
            )
        once.setdefault(id(parameter), parameter)
    if not once:
        raise ValueError(f"{op}: params is empty: need at least one Tensor")
    return list(once.values())


def _zeros_like(parameter: Tensor) -> Tensor:
    zeros = nd.full(parameter.shape, 0, dtype=parameter.dtype, device=parameter.device)
    return Tensor(zeros, requires_grad=False)


def _writable(parameter: Tensor) -> NDArray:
    """Returns the parameter's array; one whose elements repeat becomes a copy of its own first."""
    array = array_of(parameter)
    if 0 in array._strides:
        array = array.compact()
        replace(parameter, array)
    return array
