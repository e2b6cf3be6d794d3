"""cuda_graph: a training step that is launched as one, after it has run a few times."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

from . import backend_ndarray as nd
from .autograd import Tensor
from .backend_ndarray import DeviceError, NDArray

__all__ = ["GraphedStep", "cuda_graph"]

R = TypeVar("R")


class GraphedStep(Generic[R]):
    """A function of arrays on cuda(), recorded as a CUDA graph; see `cuda_graph`."""

    def __init__(self, step: Callable[..., R], warmup: int) -> None:
        self.step = step
        self.warmup = warmup
        self._graph: nd.CUDAGraph | None = None
        self._inputs: list[NDArray] = []
        self._result: R | None = None

    @property
    def recorded(self) -> bool:
        """Whether calls replay the graph."""
        return self._graph is not None

    def __call__(self, *args: Any) -> R:
        """Runs the step, recorded or not, on the arguments."""
        arrays = [_array(leaf) for leaf in _leaves(args)]
        if self._graph is None:
            if self.warmup > 0:
                self.warmup -= 1
                return self.step(*args)
            self._record(args, arrays)
        elif [_kind(a) for a in arrays] != [_kind(a) for a in self._inputs]:
            return self.step(*args)
        else:
            for kept, array in zip(self._inputs, arrays, strict=True):
                nd.copy_into(kept, array)
        assert self._graph is not None  # _record has made it
        self._graph.replay()
        return self._result  # type: ignore[return-value]

    def _record(self, args: Any, arrays: list[NDArray]) -> None:
        """Records the step on copies of its arguments, which every later call writes to."""
        inputs = [array.copy() for array in arrays]
        copies = iter(inputs)
        own = tuple(_replaced(arg, copies) for arg in args)
        graph = nd.CUDAGraph()
        with graph:
            result = self.step(*own)
        self._graph, self._inputs, self._result = graph, inputs, result


def cuda_graph(step: Callable[..., R], warmup: int = 2) -> GraphedStep[R]:
    """The step, which after `warmup` ordinary calls is recorded as a CUDA graph and replayed.

        train = ndl.cuda_graph(train_step)
        for x, y in batches:
            loss = train(x, y)  # the third call records; from then on one launch a call

    A replay runs the step's kernels and none of its Python; the optimizers of `needle.optim` count
    their steps and read their settings all the same. What a call returns is overwritten by the
    next. A call whose arguments have other shapes than the recorded ones runs as it is.

    What waits for the device, or copies to or from the host, cannot be recorded and raises
    DeviceError: `loss.item()`, dropout's random numbers, Tensors made from Python's.
    `clip_grad_norm` then returns a Tensor.

    Args:
        step: called with Tensors or NDArrays on cuda(), or tuples and lists of them, or None; it
            returns what the caller wants to see, such as the loss.
        warmup: calls before the recording, in which what is made on first use is made.

    Raises:
        ValueError: warmup is negative.
        DeviceError: when called: an argument is not on cuda().
        TypeError: when called: an argument is none of these.
    """
    if warmup < 0:
        raise ValueError(f"cuda_graph: warmup: got {warmup}: need >= 0")
    return GraphedStep(step, warmup)


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _leaves(part)
    elif value is not None:
        yield value


def _array(leaf: Any) -> NDArray:
    array = leaf.realize_cached_data() if isinstance(leaf, Tensor) else leaf
    if not isinstance(array, NDArray):
        raise TypeError(
            f"cuda_graph: not an array: got {type(leaf).__name__}: need Tensors or NDArrays, in "
            "tuples or lists, or None: what else a step needs it must hold itself"
        )
    if array.device != nd.cuda():
        raise DeviceError(
            f"cuda_graph: an argument is elsewhere: got one on {array.device}: need cuda(): "
            "move it with .to(cuda())"
        )
    return array


def _replaced(value: Any, copies: Iterator[NDArray]) -> Any:
    """`value` with the arrays of `copies` in place of its own, in the order of _leaves."""
    if isinstance(value, tuple | list):
        return type(value)([_replaced(part, copies) for part in value])
    if isinstance(value, Tensor):
        return Tensor(next(copies), requires_grad=value.requires_grad)
    return None if value is None else next(copies)


def _kind(array: NDArray) -> tuple[Any, ...]:
    return array.shape, array.dtype
