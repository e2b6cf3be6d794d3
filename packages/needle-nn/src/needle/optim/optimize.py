"""The update rules: SGD and Adam, one kernel call for all parameters of a dtype."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from needle import backend_ndarray as nd
from needle.autograd import Tensor
from needle.backend_ndarray import NDArray
from needle.checks import BELOW_ONE, NOT_NEGATIVE

from .optimizer import Optimizer, Ranges

__all__ = ["SGD", "Adam"]


class SGD(Optimizer):
    """Stochastic gradient descent with averaged momentum and L2 decay.

        u = momentum * u + (1 - momentum) * (grad + weight_decay * w)
        w = w - lr * u

    Nesterov's form looks one step ahead: w moves along what the next u would be if the gradient
    stayed as it is, w = w - lr * (momentum * u + (1 - momentum) * (grad + weight_decay * w)).

    Source: CMU 10-714 homework 2. PyTorch's momentum adds the full gradient instead; its lr is
    (1 - momentum) times this one. Nesterov: Sutskever et al., On the importance of initialization
    and momentum in deep learning, ICML 2013, in PyTorch's form.

    Attributes:
        u: the running average of each parameter, zeros at first; kept only with momentum.
        nesterov: whether steps look ahead.

    Raises:
        TypeError, DTypeError, ValueError: as Optimizer.
        TypeError: nesterov is not True or False.
        ValueError: nesterov without momentum.
    """

    ranges: ClassVar[Ranges] = {
        "lr": NOT_NEGATIVE,
        "momentum": BELOW_ONE,
        "weight_decay": NOT_NEGATIVE,
    }
    switches = ("nesterov",)
    slots = ("u",)
    lr: float
    momentum: float
    weight_decay: float
    nesterov: bool
    u: list[Tensor]

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov
        )

    def _checked(self, hyper: Mapping[str, Any]) -> dict[str, float]:
        checked = super()._checked(hyper)
        if checked["nesterov"] and not checked["momentum"]:
            raise ValueError("SGD: nesterov without momentum: got momentum 0.0: need momentum > 0")
        return checked

    def _update(
        self,
        weights: list[NDArray],
        state: list[list[NDArray]],
        gradients: list[NDArray],
        step: int,
    ) -> None:
        averages = state[0] if self.momentum else None
        nd.sgd(weights, averages, gradients, *self._scalars(step))

    def _scalars(self, step: int) -> tuple[float, float, float, bool]:
        return self.lr, self.momentum, self.weight_decay, self.nesterov


class Adam(Optimizer):
    """Adam with bias correction; weight_decay is L2, added to the gradient.

        g = grad + weight_decay * w
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    where t counts the steps of a parameter, from 1.

    Source: Kingma and Ba, Adam, ICLR 2015, Algorithm 1.

    Attributes:
        m, v: the running averages of each parameter, zeros at first.

    Raises:
        TypeError, DTypeError, ValueError: as Optimizer.
    """

    ranges: ClassVar[Ranges] = {
        "lr": NOT_NEGATIVE,
        "beta1": BELOW_ONE,
        "beta2": BELOW_ONE,
        "eps": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
    }
    slots = ("m", "v")
    lr: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    m: list[Tensor]
    v: list[Tensor]

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(
            params, lr=lr, beta1=beta1, beta2=beta2, eps=eps, weight_decay=weight_decay
        )

    def _update(
        self,
        weights: list[NDArray],
        state: list[list[NDArray]],
        gradients: list[NDArray],
        step: int,
    ) -> None:
        m, v = state
        settings = self.lr, self.beta1, self.beta2, self.eps, self.weight_decay
        nd.adam(weights, m, v, gradients, *settings, step)

    def _scalars(self, step: int) -> tuple[float, ...]:
        settings = self.lr, self.beta1, self.beta2, self.eps, self.weight_decay
        return nd.adam_scalars(*settings, step)
