"""What is counted of a kernel call: flops and bytes, against loops that count as they compute."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle._kernels import cpu as extension
from needle.backend_ndarray.costs import taps_inside

RNG = np.random.default_rng(0)


class Counted(float):
    """A number that counts the arithmetic done with it."""

    flops = 0

    def _did(self, value: float) -> Counted:
        Counted.flops += 1
        return Counted(value)

    def __add__(self, other: float) -> Counted:
        return self._did(float(self) + float(other))

    def __sub__(self, other: float) -> Counted:
        return self._did(float(self) - float(other))

    def __rsub__(self, other: float) -> Counted:
        return self._did(float(other) - float(self))

    def __mul__(self, other: float) -> Counted:
        return self._did(float(self) * float(other))

    def __truediv__(self, other: float) -> Counted:
        return self._did(float(self) / float(other))

    __radd__, __rmul__ = __add__, __mul__


def call(function: Callable[[float], float], x: Counted) -> Counted:
    """A function that counts as one."""
    return x._did(function(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def counted(*shape: int) -> np.ndarray[Any, Any]:
    out = np.empty(shape, object)
    for place in np.ndindex(shape):
        out[place] = Counted(RNG.uniform(0.5, 1))
    return out


def arrays(*shapes: tuple[int, ...]) -> list[nd.NDArray]:
    return [nd.array(RNG.uniform(0.5, 1, shape), dtype="float32") for shape in shapes]


def recorded(work: Callable[[], Any]) -> list[nd.KernelCall]:
    recorder = nd.Recorder()
    recorder.start()
    try:
        work()
    finally:
        recorder.stop()
    return recorder.take()


def last_cost(work: Callable[[], Any]) -> tuple[int, int]:
    return nd.cost_of(recorded(work)[-1])


def flops_of(loop: Callable[[], Any]) -> int:
    Counted.flops = 0
    loop()
    return Counted.flops


def test_every_kernel_has_a_formula() -> None:
    """A kernel without one would be missing in every profile: say what it does in costs.py."""
    assert set(nd.COSTS) == set(extension.KERNELS)


@pytest.mark.parametrize(("m", "k", "n"), [(3, 4, 5), (1, 1, 1), (2, 0, 3)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("activation", [None, "relu"])
def test_matmul(m: int, k: int, n: int, bias: bool, activation: str | None) -> None:
    a, b, c = counted(m, k), counted(k, n), counted(n)

    def loop() -> None:
        for i, j in np.ndindex(m, n):
            total = Counted(0)
            for p in range(k):
                total = total + a[i, p] * b[p, j]
            if bias:
                total = total + c[j]
            if activation:
                call(lambda x: max(x, 0), total)

    x, y, z = arrays((m, k), (k, n), (n,))
    flops, nbytes = last_cost(lambda: nd.matmul(x, y, z if bias else None, activation))
    assert flops == flops_of(loop)
    assert nbytes == 4 * (m * k + k * n + m * n + bias * n)


def test_linear_weight_grad() -> None:
    x, dy = arrays((6, 3), (6, 5))
    flops, nbytes = last_cost(lambda: nd.linear_weight_grad(x, dy))
    assert flops == 2 * 6 * 3 * 5 + 6 * 5
    assert nbytes == 4 * (6 * 3 + 6 * 5 + 3 * 5 + 5)


def test_matmul_batched_broadcast_and_accumulated() -> None:
    a, b, out = arrays((2, 3, 4, 5), (5, 6), (2, 3, 4, 6))
    flops, nbytes = last_cost(lambda: nd.matmul(a, b))
    assert flops == 2 * 6 * 4 * 5 * 6
    assert nbytes == 4 * (6 * 4 * 5 + 5 * 6 + 6 * 4 * 6), "b is there once"
    flops, nbytes = last_cost(lambda: nd.matmul(a, b, out=out, accumulate=True))
    assert flops == (2 * 5 + 1) * 6 * 4 * 6
    assert nbytes == 4 * (6 * 4 * 5 + 5 * 6 + 2 * 6 * 4 * 6)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(4, 2, 2, 0), (7, 3, 2, 1), (5, 4, 1, 2), (3, 1, 3, 0)],
)
def test_pooling_counts_the_pixels_under_the_windows(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    x = counted(2, size, size + 1, 3)
    rows, columns = ((n + 2 * padding - kernel) // stride + 1 for n in x.shape[1:3])

    def loop() -> None:
        for n, i, j, c in np.ndindex(2, rows, columns, 3):
            total = 0.0
            for u, v in np.ndindex(kernel, kernel):
                row, column = i * stride + u - padding, j * stride + v - padding
                if 0 <= row < size and 0 <= column < size + 1:
                    total = total + x[n, row, column, c]

    pixels = flops_of(loop)
    a, dy = arrays(x.shape, (2, rows, columns, 3))
    window = kernel, stride, padding
    index = nd.max_pool(a, *window)[1]
    assert last_cost(lambda: nd.max_pool(a, *window)) == (pixels, 4 * (a.size + 2 * dy.size))
    assert last_cost(lambda: nd.max_pool_grad(dy, index, a.shape, *window))[0] == dy.size
    assert last_cost(lambda: nd.max_pool_pick(a, index, *window))[0] == 0
    assert last_cost(lambda: nd.avg_pool(a, *window))[0] == pixels + dy.size
    back = last_cost(lambda: nd.avg_pool_grad(dy, a.shape, *window))
    assert back == (pixels + dy.size, 4 * (a.size + dy.size))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(1, 3, 1, 1), (5, 3, 1, 1), (6, 3, 2, 1), (7, 4, 3, 0), (4, 2, 1, 3), (8, 7, 4, 3)],
)
def test_conv_counts_the_taps_inside_the_image(
    size: int, kernel: int, stride: int, padding: int
) -> None:
    batch, channels, filters = 2, 3, 2
    out = (size + 2 * padding - kernel) // stride + 1
    x, w = counted(batch, size, size + 1, channels), counted(kernel, kernel, channels, filters)
    width = (size + 1 + 2 * padding - kernel) // stride + 1

    def loop() -> None:
        for n, i, j, f in np.ndindex(batch, out, width, filters):
            total = Counted(0)
            for di, dj, c in np.ndindex(kernel, kernel, channels):
                row, column = i * stride + di - padding, j * stride + dj - padding
                if 0 <= row < size and 0 <= column < size + 1:
                    total = total + x[n, row, column, c] * w[di, dj, c, f]

    expected = flops_of(loop)
    a, b, dy, bias = arrays(
        x.shape, (kernel, kernel, channels, filters), (batch, out, width, filters), (filters,)
    )
    assert last_cost(lambda: nd.conv(a, b, None, stride, padding))[0] == expected
    with_bias = last_cost(lambda: nd.conv(a, b, bias, stride, padding, "relu"))[0]
    assert with_bias == expected + 2 * dy.size
    back = last_cost(lambda: nd.conv_input_grad(dy, b, a.shape, stride, padding))
    assert back == (expected, 4 * (a.size + b.size + dy.size))
    assert last_cost(lambda: nd.conv_weight_grad(a, dy, kernel, stride, padding))[0] == expected


def test_taps_inside_without_padding_is_every_tap() -> None:
    assert taps_inside(10, 3, 8, 1, 0) == 24
    assert taps_inside(1, 3, 1, 1, 1) == 1


def test_lstm_cell() -> None:
    b, h = 2, 3
    pre, c_prev, dh, dc = counted(b, 4 * h), counted(b, h), counted(b, h), counted(b, h)

    def forward(n: int, k: int) -> tuple[Counted, ...]:
        i, f, o = (call(sigmoid, pre[n, part * h + k]) for part in (0, 1, 3))
        g = call(math.tanh, pre[n, 2 * h + k])
        c = f * c_prev[n, k] + i * g
        _ = o * call(math.tanh, c)
        return i, f, g, o, c

    def backward(n: int, k: int) -> None:
        i, f, g, o, c = gates[n, k]
        t = call(math.tanh, c)
        total = dc[n, k] + dh[n, k] * o * (1 - t * t)
        _ = total * g * i * (1 - i), total * c_prev[n, k] * f * (1 - f)
        _ = total * i * (1 - g * g), dh[n, k] * t * o * (1 - o), total * f

    places = list(np.ndindex(b, h))
    want = flops_of(lambda: [forward(*place) for place in places])
    gates = {place: forward(*place) for place in places}
    want_back = flops_of(lambda: [backward(*place) for place in places])
    a, c = arrays((b, 4 * h), (b, h))
    assert last_cost(lambda: nd.lstm_cell(a, c)) == (want, 4 * b * h * 11)
    back = last_cost(lambda: nd.lstm_cell_grad(c, c, a, c, c))
    assert back == (want_back, 4 * b * h * 13)


def test_recurrent_sequences_are_their_steps() -> None:
    """As many flops as the products and cells that define them."""
    steps, b, h = 3, 2, 4
    rows, state = (steps, b, h), arrays((b, h))[0]
    pre, w, plain, square = arrays((steps, b, 4 * h), (h, 4 * h), rows, (h, h))
    product = last_cost(lambda: state @ w)[0]
    add = b * 4 * h
    cell = last_cost(lambda: nd.lstm_cell(pre[0], state))[0]
    states, cells, gates = nd.lstm_sequence(pre, state, state, w)
    flops, nbytes = last_cost(lambda: nd.lstm_sequence(pre, state, state, w))
    assert flops == steps * (product + add + cell)
    arrays_seen = (states, cells, gates, pre, state, state, w)
    assert nbytes == 4 * sum(a.size for a in arrays_seen)
    back = last_cost(lambda: nd.lstm_cell_grad(state, state, pre[0], state, state))[0]
    assert back == 23 * b * h
    found = last_cost(lambda: nd.lstm_sequence_grad(plain, None, None, gates, cells, w))[0]
    assert found == steps * (product + back + b * h)
    assert last_cost(lambda: nd.lstm_sequence_grad(None, state, None, gates, cells, w))[0] == (
        steps * (product + back)
    )

    product = last_cost(lambda: state @ square)[0]
    assert last_cost(lambda: nd.rnn_sequence(plain, state, square))[0] == (
        steps * (product + 2 * b * h)
    )
    states = nd.rnn_sequence(plain, state, square)
    for kind, each in (("tanh", 3), ("relu", 1)):
        flops, _ = last_cost(lambda k=kind: nd.rnn_sequence_grad(plain, None, states, square, k))
        assert flops == steps * (product + each * b * h + b * h)


def test_moving_average() -> None:
    running, value = arrays((3, 5), (3, 5))
    # three flops for each of 15; two arrays read, one written
    assert last_cost(lambda: nd.moving_average([running], [value], 0.1)) == (45, 4 * 15 * 3)


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd(momentum: float, nesterov: bool) -> None:
    lr, decay = 0.1, 0.01
    w, u, g = counted(5), counted(5), counted(5)

    def loop() -> None:
        for i in range(5):
            step = g[i] + decay * w[i]
            if momentum:
                # 1 - momentum is one number for all
                mean = momentum * u[i] + (1 - momentum) * step
                step = momentum * mean + (1 - momentum) * step if nesterov else mean
            _ = w[i] - lr * step

    p, q, r = arrays((5,), (5,), (5,))
    flops, nbytes = last_cost(
        lambda: nd.sgd([p], [q] if momentum else None, [r], lr, momentum, decay, nesterov)
    )
    assert flops == flops_of(loop)
    assert nbytes == 4 * 5 * (5 if momentum else 3)


def test_adam() -> None:
    lr, beta1, beta2, eps, decay = 0.1, 0.9, 0.99, 1e-8, 0.01
    one1, one2 = 1 - beta1, 1 - beta2
    w, m, v, g = (counted(6) for _ in range(4))

    def loop() -> None:
        for i in range(6):
            d = g[i] + decay * w[i]
            mean = beta1 * m[i] + one1 * d
            square = beta2 * v[i] + one2 * d * d
            root = call(math.sqrt, square / 0.5)
            _ = w[i] - lr * (mean / 0.5) / (root + eps)

    p = [arrays((2, 3))[0] for _ in range(4)]
    cost = last_cost(
        lambda: nd.adam([p[0]], [p[1]], [p[2]], [p[3]], lr, beta1, beta2, eps, decay, 1)
    )
    assert cost == (flops_of(loop), 4 * 6 * 7)


def test_normalisation_per_element() -> None:
    """What is per row or channel only (means' divisions, roots) is left out of the count."""
    (x,) = arrays((1, 7))
    weight = nd.ones((7,))
    row, dy = counted(7), counted(7)
    mean, inverse, w, b = (Counted(1) for _ in range(4))

    def forward() -> None:
        total = var = Counted(0)
        for value in row:
            total = total + value
            d = value - mean
            var = var + d * d
            _ = (value - mean) * inverse * w + b

    def backward() -> None:
        dbias = dweight = along = mean_g = Counted(0)
        for value, d in zip(row, dy, strict=True):
            xhat = (value - mean) * inverse
            dbias, dweight = dbias + d, dweight + d * xhat
            g = d * w
            mean_g, along = mean_g + g, along + g * xhat
            _ = (g - mean_g - xhat * along) * inverse

    y, mean_array, var_array = nd.layer_norm(x, weight, weight, 1e-5)
    assert last_cost(lambda: nd.layer_norm(x, weight, weight, 1e-5))[0] == flops_of(forward)
    back = last_cost(lambda: nd.layer_norm_grad(y, x, mean_array, var_array, weight, 1e-5))
    assert back[0] == flops_of(backward)


def test_gather_and_scatter_count_the_rows_that_are_touched() -> None:
    table, src = arrays((100, 8), (3, 8))
    ids = nd.array(np.array([1, 5, 1]), dtype="int64")
    assert last_cost(lambda: nd.gather(table, ids)) == (0, 2 * 3 * 8 * 4 + 3 * 8)
    assert last_cost(lambda: nd.scatter_add(src, ids, 100)) == (24, 3 * 3 * 8 * 4 + 3 * 8)
    one = arrays((1, 1))[0].broadcast_to((3, 8))
    assert last_cost(lambda: nd.scatter_add(one, ids, 100)) == (24, 4 + 2 * 3 * 8 * 4 + 3 * 8)


def test_image_batch_counts_one_image_for_each_id() -> None:
    data = nd.array(np.zeros((9, 3, 4, 5)), dtype="uint8")
    ids, channels = nd.array(np.array([1, 5]), dtype="int64"), nd.ones(3)
    pixels = 2 * 3 * 4 * 5
    assert last_cost(lambda: nd.image_batch(data, ids)) == (0, 5 * pixels + 2 * 8)
    scaled = last_cost(lambda: nd.image_batch(data, ids, divisor=channels, offset=channels))
    assert scaled == (2 * pixels, 5 * pixels + 2 * 8 + 2 * 3 * 4)


def test_bytes_of_views() -> None:
    a, row = arrays((4, 6), (6,))
    assert last_cost(lambda: a + row) == (24, 4 * (24 + 24 + 6))
    assert last_cost(lambda: a + 1.0) == (24, 4 * (24 + 24 + 1))
    assert last_cost(lambda: a[::-1, ::2].compact()) == (0, 2 * 4 * 12)
    assert last_cost(lambda: nd.empty((0, 3)).fill(1)) == (0, 0)
    double = nd.array(np.ones((2, 3)), dtype="float64")
    assert last_cost(lambda: double.sum(0)) == (6, 8 * 9)


def test_each_cost_is_a_whole_number_on_both_devices(device: nd.Device) -> None:
    x = nd.array(RNG.uniform(0.5, 1, (6, 4)), device=device, dtype="float32")
    labels = nd.array(np.array([0, 3, 1, 2, 0, 1]), device=device, dtype="int64")
    weight = nd.ones((4,), device=device)

    def work() -> None:
        loss, lse = nd.softmax_cross_entropy(x, labels)
        nd.softmax_cross_entropy_grad(loss, x, lse, labels)
        y, mean, var = nd.layer_norm(x, weight, weight, 1e-5)
        nd.layer_norm_grad(y, x, mean, var, weight, 1e-5)
        y, mean, var = nd.batch_norm(x, weight, weight, 1e-5, relu=True)
        nd.batch_norm_grad(y, x, y, mean, var, weight, 1e-5, relu=True)
        nd.softmax(x), nd.logsumexp(x, 1), nd.sum_squares([x, x]), nd.scale([x], 2.0)

    costs = {call.kernel: nd.cost_of(call)[0] for call in recorded(work)}
    assert costs == {
        "softmax_cross_entropy": 4 * 24,
        "softmax_cross_entropy_grad": 3 * 24 + 6,
        "layer_norm": 8 * 24,
        "layer_norm_grad": 13 * 24,
        "batch_norm": 9 * 24,
        "batch_norm_grad": 10 * 24,
        "softmax": 5 * 24,
        "logsumexp": 4 * 24,
        "sum_squares": 2 * 48,
        "scale": 24,
    }


class TestRecorder:
    def test_a_call(self, device: nd.Device) -> None:
        a = nd.ones((2, 3), device=device)
        before = extension.clock()
        (call,) = recorded(lambda: a.T + 1.0)
        assert call.kernel == "add"
        assert call.device == ("reference" if device == nd.cpu_numpy() else device.name)
        assert call.operands[1] == nd.Operand("float32", (3, 2), (1, 3))
        assert before <= call.start <= call.start + call.duration <= extension.clock()
        assert call.thread == extension.thread_number()
        assert call.describe() == "float32(3,2) float32(3,2) float32(3,2)"
        call = recorded(lambda: nd.matmul(a, a.T, activation="tanh"))[-1]
        assert call.operands[3] is None
        assert call.scalars == (2.0, 0.0)
        assert call.describe().endswith("none")

    def test_two_at_once_and_the_trace(self) -> None:
        outer, inner = nd.Recorder(), nd.Recorder()
        outer.start()
        outer.start()
        nd.set_tracing(True)
        nd.ones((2,))
        inner.start()
        nd.ones((3,))
        inner.stop()
        nd.set_tracing(False)
        nd.ones((4,))
        outer.stop()
        nd.ones((5,))
        shapes = [
            [c.operands[0].shape[0] for c in r.take() if c.operands[0]] for r in (outer, inner)
        ]
        assert shapes == [[2, 3, 4], [3]]
        assert [event[4][:10] for event in nd.trace()] == ["float32(2)", "float32(3)"]
        assert outer.take() == []

    def test_a_dropped_recorder_stops(self) -> None:
        nd.Recorder().start()
        nd.ones((2,))

    def test_threads_have_numbers(self) -> None:
        recorder = nd.Recorder()
        recorder.start()
        workers = [threading.Thread(target=lambda: nd.ones((9,)) + 1.0) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        recorder.stop()
        calls = recorder.take()
        assert len(calls) == 6
        assert len({call.thread for call in calls}) == 3


class TestPeak:
    def test_it_is_measured_once_per_setting(self) -> None:
        before = nd.num_threads()
        try:
            nd.set_num_threads(1)
            one = nd.peak()
            assert nd.peak() is one
            assert (one.isa, one.threads) == (nd.isa(), 1)
            assert min(one.gflops32, one.gflops64, one.gbytes) > 0
        finally:
            nd.set_num_threads(before)

    def test_least_seconds(self) -> None:
        peak = nd.Peak("scalar", 1, gflops32=100, gflops64=50, gbytes=10)
        assert peak.least_seconds(200e9, 1e9) == pytest.approx(2)
        assert peak.least_seconds(200e9, 1e9, double=True) == pytest.approx(4)
        assert peak.least_seconds(0, 30e9) == pytest.approx(3)

    def test_it_leaves_the_allocator_alone(self) -> None:
        nd.reset_peak()
        before = nd.memory_stats()
        nd.peak(remeasure=True)
        assert nd.memory_stats() == before
