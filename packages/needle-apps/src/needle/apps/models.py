"""The networks needle is measured with: two ResNet9s for images, LanguageModel for text."""

from __future__ import annotations

from typing import Any

from needle import Tensor, init, nn, ops
from needle.apps.checks import check_kind
from needle.backend_ndarray import Device, ShapeError
from needle.checks import UNIT, check_number, check_switch
from needle.nn.checks import check_tensor, positive

State = Tensor | tuple[Tensor, Tensor]
"""A recurrent state: h for an RNN, (h, c) for an LSTM, each (num_layers, bs, hidden)."""


class ConvBN(nn.Module):
    """relu(batch_norm(conv(x))): x (N, a, H, W) to (N, b, ceil(H / stride), ceil(W / stride))."""

    def __init__(
        self,
        a: int,
        b: int,
        kernel_size: int,
        stride: int,
        device: Device | None = None,
        dtype: Any = "float32",
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv(a, b, kernel_size, stride, bias, device=device, dtype=dtype)
        # relu=True: normalising and clipping are one kernel, forward and backward.
        self.norm = nn.BatchNorm2d(b, device=device, dtype=dtype, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layers in turn."""
        y: Tensor = self.norm(self.conv(x))
        return y


class ResNet9(nn.Module):
    """A nine-layer residual network for 32 x 32 colour images: 431,946 parameters.

    ```
    ConvBN(3, 16, 7, 4)  ConvBN(16, 32, 3, 2)   Residual[ConvBN(32, 32, 3, 1) x 2]
    ConvBN(32, 64, 3, 2) ConvBN(64, 128, 3, 2)  Residual[ConvBN(128, 128, 3, 1) x 2]
    Flatten  Linear(128, 128)  ReLU  Linear(128, 10)
    ```

    Parameters are drawn from NumPy's global generator in this order.

    Source: CMU 10-714 homework 4; He et al. 2015, "Deep Residual Learning for Image Recognition".
    """

    def __init__(self, device: Device | None = None, dtype: Any = "float32") -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}

        def residual(channels: int) -> nn.Residual:
            blocks = [ConvBN(channels, channels, 3, 1, **at) for _ in range(2)]
            return nn.Residual(nn.Sequential(*blocks))

        self.layers = nn.Sequential(
            ConvBN(3, 16, 7, 4, **at),
            ConvBN(16, 32, 3, 2, **at),
            residual(32),
            ConvBN(32, 64, 3, 2, **at),
            ConvBN(64, 128, 3, 2, **at),
            residual(128),
            nn.Flatten(),
            nn.Linear(128, 128, **at),
            nn.ReLU(),
            nn.Linear(128, 10, **at),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Score ten classes: x (N, 3, 32, 32) to logits (N, 10)."""
        logits: Tensor = self.layers(x)
        return logits


class ResNet9Full(nn.Module):
    """The nine-layer residual network of the CIFAR-10 speed records: 6,573,120 parameters.

    It looks at images in full resolution and halves it by max pooling, where `ResNet9` strides.

    ```
    ConvBN(3, 64)
    ConvBN(64, 128)   MaxPool(2)  Residual[ConvBN(128, 128) x 2]
    ConvBN(128, 256)  MaxPool(2)
    ConvBN(256, 512)  MaxPool(2)  Residual[ConvBN(512, 512) x 2]
    MaxPool(4)  Flatten  Linear(512, 10) / 8
    ```

    All convolutions are 3 x 3, without a bias: batch norm would take it out again. Nor has the last
    layer one. An eighth of its output keeps the first softmax from being too sure.

    Source: David Page, "How to train your ResNet", part 4, 2018 (DAWNBench).
    """

    def __init__(self, device: Device | None = None, dtype: Any = "float32") -> None:
        super().__init__()
        at: dict[str, Any] = {"device": device, "dtype": dtype}

        def block(a: int, b: int) -> ConvBN:
            return ConvBN(a, b, 3, 1, **at, bias=False)

        def residual(channels: int) -> nn.Residual:
            return nn.Residual(nn.Sequential(block(channels, channels), block(channels, channels)))

        self.layers = nn.Sequential(
            block(3, 64),
            block(64, 128),
            nn.MaxPool2d(2),
            residual(128),
            block(128, 256),
            nn.MaxPool2d(2),
            block(256, 512),
            nn.MaxPool2d(2),
            residual(512),
            nn.MaxPool2d(4),
            nn.Flatten(),
            nn.Linear(512, 10, bias=False, **at),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Score ten classes: x (N, 3, 32, 32) to logits (N, 10)."""
        logits: Tensor = self.layers(x) * 0.125
        return logits


class TiedLinear(nn.Module):
    """Computes x E^T + bias, where E (V, D) is an embedding's weight: one parameter, used twice.

    Shapes: x (N, D), result (N, V).

    Attributes:
        weight: the embedding's own Tensor; in a state_dict it has both names.
        bias: (1, V), as Linear draws it.

    Raises:
        TypeError: it is given no Embedding.

    Source: Press and Wolf, Using the Output Embedding to Improve Language Models, 2017.
    """

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        check_kind("TiedLinear", "embedding", embedding, nn.Embedding, "an Embedding")
        self.weight = embedding.weight
        words = embedding.num_embeddings
        at: dict[str, Any] = {"device": self.weight.device, "dtype": self.weight.dtype}
        bias = init.kaiming_uniform(words, 1, **at)
        self.bias = nn.Parameter(bias.reshape((1, words)))

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, ops.transpose(self.weight), self.bias)


class LanguageModel(nn.Module):
    """Predict each next word: Embedding, then an RNN or LSTM, then Linear to the vocabulary.

    With dropout, what goes into, between and out of the recurrent layers is dropped in training,
    what a layer hands to itself is not.

    Args:
        embedding_size: length of a word's vector.
        output_size: words in the vocabulary.
        hidden_size: length of a layer's hidden state.
        num_layers: recurrent layers.
        seq_model: `"rnn"` (tanh) or `"lstm"`.
        seq_len: kept from the course's signature; forward takes sequences of any length.
        device: where the parameters live; the default device when None.
        dtype: type of the parameters.
        dropout: probability of dropping a value.
        tied: the word vectors are the output layer's weights too.

    Raises:
        TypeError: a size is no integer, dropout no number, or tied no bool.
        ValueError: seq_model is neither, or dropout is not in [0, 1].
        ShapeError: a size is below 1, or tied, and the hidden states are not as long as the word
            vectors.

    Source: CMU 10-714 homework 4; Zaremba et al. 2014, "Recurrent Neural Network Regularization".
    """

    def __init__(
        self,
        embedding_size: int,
        output_size: int,
        hidden_size: int,
        num_layers: int = 1,
        seq_model: str = "rnn",
        seq_len: int = 40,
        device: Device | None = None,
        dtype: Any = "float32",
        *,
        dropout: float = 0.0,
        tied: bool = False,
    ) -> None:
        super().__init__()
        sizes = {"embedding_size": embedding_size, "output_size": output_size}
        sizes |= {"hidden_size": hidden_size, "num_layers": num_layers}
        for name, size in sizes.items():
            positive("LanguageModel", name, size)
        if seq_model not in ("rnn", "lstm"):
            raise ValueError(
                f"LanguageModel: unknown seq_model: {seq_model!r}: need 'rnn' or 'lstm'"
            )
        check_number("LanguageModel", "dropout", dropout, *UNIT)
        if check_switch("LanguageModel", "tied", tied) and embedding_size != hidden_size:
            raise ShapeError(
                f"LanguageModel: tied sizes differ: embedding_size is {embedding_size}, "
                f"hidden_size {hidden_size}: need the same"
            )
        at: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = nn.Embedding(output_size, embedding_size, **at)
        recurrent = {"rnn": nn.RNN, "lstm": nn.LSTM}[seq_model]
        self.seq_model = recurrent(embedding_size, hidden_size, num_layers, **at, dropout=dropout)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.linear = (
            TiedLinear(self.embedding) if tied else nn.Linear(hidden_size, output_size, **at)
        )

    def forward(self, x: Tensor, h: State | None = None) -> tuple[Tensor, State]:
        """Score every next word.

        Args:
            x: word ids, (seq_len, bs).
            h: the state to go on from; zeros when None. h (num_layers, bs, hidden) for an RNN,
                a tuple (h, c) of such for an LSTM.

        Returns:
            Logits (seq_len * bs, output_size), step by step as in `x.reshape(-1)`, and the
            state after the last step, of h's form.

        Raises:
            TypeError: x is not a Tensor, or h not of its form.
            ShapeError: x is not (seq_len, bs).
        """
        check_tensor("LanguageModel", "x", x)
        if len(x.shape) != 2:
            raise ShapeError(f"LanguageModel: x has wrong rank: {x.shape}: need (seq_len, bs)")
        hidden, state = self.seq_model(self._drop(self.embedding(x)), h)
        seq_len, bs, size = hidden.shape
        logits: Tensor = self.linear(self._drop(hidden).reshape((seq_len * bs, size)))
        return logits, (state if isinstance(state, Tensor) else (state[0], state[1]))

    def _drop(self, x: Tensor) -> Tensor:
        """Dropout, if there is any: without it nothing is drawn."""
        return x if self.dropout is None else self.dropout.forward(x)
