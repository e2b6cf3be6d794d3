"""The walk backwards: from one value to the leaves it depends on.

The engine knows nothing about any operation. It visits nodes in reverse topological order, hands
each the sum of what arrived, and passes on what its `gradient` returns. Sums belong to one pass:
nothing is stored on nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .backend_ndarray import DeviceError, NDArray, ShapeError
from .mode import current as mode
from .mode import recording
from .versions import check_saved

if TYPE_CHECKING:
    from .autograd import Node, Tensor


def post_order(roots: Iterable[Node]) -> list[Node]:
    """All nodes that the roots depend on, each after its inputs; without recursion."""
    return _order(roots, frozenset(), everything=True)


def _order(roots: Iterable[Node], stops: frozenset[int], everything: bool) -> list[Node]:
    """Depth-first post-order; nodes in `stops` (by id) are listed but not entered.

    Unless `everything`, only nodes that carry gradients are listed.
    """
    order: list[Node] = []
    seen: set[int] = set()
    for root in roots:
        stack: list[Node | None] = [root]
        while stack:
            node = stack.pop()
            if node is None:  # marks a node below it whose inputs are all listed
                order.append(stack.pop())  # type: ignore[arg-type]
                continue
            if id(node) in seen or not (everything or node.needs):
                continue
            seen.add(id(node))
            edges = () if id(node) in stops else _edges(node, everything)
            if edges:
                stack += (node, None, *reversed(edges))
            else:
                order.append(node)
    return order


def _edges(node: Node, everything: bool) -> Sequence[Node]:
    if node._inputs is not None:
        return node._inputs
    if everything:
        return ()
    raise RuntimeError(
        f"backward: the graph has been freed: got a second pass through "
        f"{node.op.name if node.op else 'a leaf'} after backward(retain_graph=False): "
        "call the first one with retain_graph=True"
    )


def backward(root: Tensor, out_grad: Any, retain_graph: bool, accumulate: bool) -> None:
    """Tensor.backward: see there."""
    node = root._leaf or root
    if not node.needs:
        raise RuntimeError(
            f"backward: nothing to differentiate: got a Tensor {root.shape} that does not require "
            "grad: need one computed from leaves with requires_grad=True, outside no_grad()"
        )
    order = _order([node], frozenset(), everything=False)
    root.realize_cached_data()
    _check_order(order)
    seed = _seed(root, out_grad)
    graph = retain_graph and mode.recording
    with recording(graph, walking=not graph):
        found = _propagate(order, {id(node): seed}, frozenset(), release=not retain_graph)
        assigned = []
        taken = set() if out_grad is None else {id(seed.realize_cached_data()._handle)}
        for leaf, grad in found:
            tensor = leaf.tensor()  # type: ignore[attr-defined]
            if tensor is not None:
                assigned.append((tensor, _final(tensor, grad, accumulate, taken)))
    for tensor, grad in assigned:
        tensor.grad = grad


def _final(tensor: Tensor, grad: Tensor, accumulate: bool, taken: set[int]) -> Tensor:
    """What `tensor.grad` becomes: computed, and in memory of its own.

    `taken` has the storages (by id) that others hold: whoever writes to one gradient must not
    change another, nor the caller's out_grad.
    """
    if accumulate and tensor.grad is not None:
        grad = tensor.grad + grad
    data = grad.realize_cached_data()
    if id(data._handle) in taken or 0 in data._strides:  # a stride of 0: elements share a place
        grad = ops.Copy()(grad)
        data = grad.realize_cached_data()
    taken.add(id(data._handle))
    return grad.detach() if grad._leaf is not None else grad


def _seed(root: Tensor, out_grad: Any) -> Tensor:
    """The gradient that a pass starts from: checked, in the root's dtype."""
    if out_grad is None:
        return autograd.Tensor(root.device.ones(root.shape, dtype=root.dtype), requires_grad=False)
    if not isinstance(out_grad, autograd.Tensor):
        if not isinstance(out_grad, NDArray) and not hasattr(out_grad, "__array__"):
            raise TypeError(
                f"backward: out_grad is not a Tensor: got {type(out_grad).__name__}: need a Tensor"
            )
        out_grad = autograd.Tensor(
            out_grad,
            device=None if isinstance(out_grad, NDArray) else root.device,
            requires_grad=False,
        )
    if out_grad.shape != root.shape:
        raise ShapeError(
            f"backward: out_grad does not fit: got {out_grad.shape}: need {root.shape}"
        )
    if out_grad.device != root.device:
        raise DeviceError(
            f"backward: devices differ: got out_grad on {out_grad.device}: need {root.device}"
        )
    return ops.astype(out_grad, root.dtype)


def _check_order(order: list[Node]) -> None:
    """Checks everything before anything is computed, so that no leaf is left half-done."""
    for node in order:
        if node._saved:
            check_saved(node)


def _propagate(
    order: list[Node], pending: dict[int, Any], stops: frozenset[int], release: bool
) -> list[tuple[Node, Tensor]]:
    """Walks `order` from its end; the gradients of the leaves and of the nodes in `stops`.

    `pending` maps a node's id to what has arrived for it: a Tensor, or for a TensorTuple a dict
    from item to Tensor. `order` is used up, so that a node is freed when the walk leaves it.
    """
    found: list[tuple[Node, Tensor]] = []
    while order:
        node = order.pop()
        grad = pending.pop(id(node), None)
        if node.op is None or id(node) in stops:
            if grad is not None:
                found.append((node, grad))
            continue
        if grad is not None:
            if type(grad) is dict:
                grad = tuple([grad.get(i) for i in range(len(node._spec))])
            parts = node.op.gradient_as_tuple(grad, node)
            for edge, part in zip(node._inputs or (), parts, strict=True):
                if part is not None and edge.needs:
                    _add(pending, id(edge), part)
        if release:
            node.release()
    return found


def _add(pending: dict[int, Any], key: int, part: Any) -> None:
    """Adds one contribution to what a node has received."""
    if isinstance(part, autograd.TensorTuple):
        part = dict(enumerate(part))
    before = pending.get(key)
    if before is None:
        pending[key] = part
    elif type(part) is dict:
        for i, item in part.items():
            before[i] = before[i] + item if i in before else item
    else:
        pending[key] = before + part


def vjp(
    outputs: Sequence[Tensor | None],
    out_grads: Sequence[Tensor | None],
    inputs: Sequence[Tensor],
) -> tuple[Tensor | None, ...]:
    """The gradients of sum(outputs * out_grads) for `inputs`, and no further.

    Each input must be a node of its own. None where no output depends on it; an output or
    gradient of None counts as 0.
    """
    pending: dict[int, Any] = {}
    roots = []
    for output, grad in zip(outputs, out_grads, strict=True):
        if output is None or grad is None:
            continue
        node = output._leaf or output
        if node.needs:
            _add(pending, id(node), grad)
            roots.append(node)
    targets = [value._leaf or value for value in inputs]
    stops = frozenset(map(id, targets))
    order = _order(roots, stops, everything=False)
    found = {id(node): grad for node, grad in _propagate(order, pending, stops, release=False)}
    return tuple([found.get(id(target)) for target in targets])


def plain_vjp(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor],
    out_grads: Sequence[Tensor | None],
) -> tuple[Tensor | None, ...]:
    """The gradients of `function`, written in differentiable operations, for its inputs.

    The inputs enter through aliases: one node each, even where the same Tensor comes twice. The
    aliases lead on to the inputs, so the results can be differentiated again.
    """
    with recording(True):
        aliases = [_alias(x) for x in inputs]
        outputs = function(*aliases)
    return vjp(outputs, out_grads, aliases)


def _alias(x: Tensor) -> Tensor:
    """A node of its own that carries gradients, with the data of `x`."""
    if x.requires_grad:
        return ops.Alias()(x)
    return autograd.Tensor(x, requires_grad=True)


from . import autograd, ops  # noqa: E402  the three refer to each other, inside functions
