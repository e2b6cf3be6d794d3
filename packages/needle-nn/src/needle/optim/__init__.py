"""Optimizers: rules that turn gradients into better parameters."""

from .optimize import SGD, Adam
from .optimizer import Optimizer

__all__ = ["SGD", "Adam", "Optimizer"]
