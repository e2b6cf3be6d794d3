"""Modules: the layers, containers and losses a network is made of."""

from .containers import Identity, Residual, Sequential
from .conv import Conv
from .elementwise import Dropout, ReLU, Sigmoid, Tanh
from .index import Embedding
from .matmul import Linear
from .module import Module, Parameter
from .normalize import BatchNorm1d, BatchNorm2d, LayerNorm1d
from .pool import AvgPool2d, MaxPool2d
from .recurrent import LSTM, RNN, LSTMCell, RNNCell
from .shape import Flatten
from .softmax import SoftmaxLoss

__all__ = [
    "LSTM",
    "RNN",
    "AvgPool2d",
    "BatchNorm1d",
    "BatchNorm2d",
    "Conv",
    "Dropout",
    "Embedding",
    "Flatten",
    "Identity",
    "LSTMCell",
    "LayerNorm1d",
    "Linear",
    "MaxPool2d",
    "Module",
    "Parameter",
    "RNNCell",
    "ReLU",
    "Residual",
    "Sequential",
    "Sigmoid",
    "SoftmaxLoss",
    "Tanh",
]
