"""CUDA graphs of arrays: what is recorded, what memory it keeps, what it refuses."""

import threading

import numpy as np
import pytest

from needle import backend_ndarray as nd
from needle.backend_ndarray.testing import array_devices, compare


@pytest.fixture(params=array_devices()[-1:])
def cuda(request):
    return request.param.device


def floats(*values):
    return np.array(values, np.float32)


def test_a_replay_computes_from_what_arrays_hold_now(cuda):
    x = nd.array([1.0, -2.0], device=cuda)
    with nd.CUDAGraph() as graph:
        y = nd.relu(x * 2) + 1
    graph.replay()
    compare(y, floats(3, 1))
    x[:] = nd.array([-1.0, 5.0], device=cuda)
    graph.replay()
    compare(y, floats(1, 11))


def test_recording_computes_nothing(cuda):
    total = nd.zeros((2,), device=cuda)
    with nd.CUDAGraph() as graph:
        total += 1
    compare(total, floats(0, 0))
    for _ in range(3):
        graph.replay()
    compare(total, floats(3, 3))


def test_a_kernel_with_workspace_and_several_launches(cuda):
    rng = np.random.default_rng(0)
    logits = nd.array(rng.normal(size=(50, 7)), device=cuda)
    labels = nd.array(rng.integers(0, 7, 50), dtype="int64", device=cuda)
    with nd.CUDAGraph() as graph:
        loss, _ = nd.softmax_cross_entropy(logits, labels)
        other = (logits * 3).sum()  # its memory is not the workspace's: both must survive
    graph.replay()
    compare(loss, nd.softmax_cross_entropy(logits, labels)[0].numpy())
    compare(other, (logits * 3).sum().numpy())


def test_memory_of_a_graph_is_its_own_while_it_lives(cuda):
    before = nd.memory_stats(cuda)["in_use"]
    x = nd.ones((1000,), device=cuda)
    with nd.CUDAGraph() as graph:
        y = x * 2 * 3 * 4  # freed in between, and used again within the graph
    of_graph = nd.memory_stats(cuda)["in_use"] - before
    assert of_graph <= 4 * 4096
    del x  # the graph reads it: it keeps it
    others = [nd.full((1000,), 7, device=cuda) for _ in range(8)]
    graph.replay()
    compare(y, np.full(1000, 24, np.float32))
    for other in others:
        compare(other, np.full(1000, 7, np.float32))
    del graph, others, other
    compare(y, np.full(1000, 24, np.float32))  # an array outlives its graph
    del y
    assert nd.memory_stats(cuda)["in_use"] == before


REFUSED = {
    "copy to the host": lambda x: x.item(),
    "copy to the device": lambda x: nd.array([1.0], device=x.device),
    "waiting for the device": lambda x: nd.synchronize(x.device),
    "emptying the cache": lambda x: nd.empty_cache(x.device),
    "recording another graph": lambda x: nd.CUDAGraph().__enter__(),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_recorded(cuda, what):
    x = nd.ones((1,), device=cuda)
    text = f"cuda: not possible while a graph is recorded: got .*{what}: do it before the rec"
    with pytest.raises(nd.DeviceError, match=text), nd.CUDAGraph():
        REFUSED[what](x)
    compare(x + 1, floats(2))  # the recording is over
    with nd.CUDAGraph() as graph:
        y = x + 2
    graph.replay()
    compare(y, floats(3))


def test_adams_step_number_cannot_be_recorded(cuda):
    w, m, v, g = ([nd.ones((2,), device=cuda)] for _ in range(4))
    text = "adam: cannot be recorded as it is: got a step number, the same in every replay: use"
    with pytest.raises(nd.DeviceError, match=text), nd.CUDAGraph():
        nd.adam(w, m, v, g, 0.1, 0.9, 0.99, 1e-8, 0.0, 1)


def test_another_thread_does_not_get_into_a_graph(cuda):
    x, raised = nd.ones((2,), device=cuda), []

    def launch():
        try:
            nd.exp(x)
        except nd.DeviceError as error:
            raised.append(str(error))

    with nd.CUDAGraph():
        thread = threading.Thread(target=launch)
        thread.start()
        thread.join()
    text = "cuda: another thread records a graph: got a launch of exp: use the device from one thr"
    assert len(raised) == 1
    assert text in raised[0]


def test_a_graph_is_recorded_once_and_before_it_is_replayed(cuda):
    graph = nd.CUDAGraph()
    with pytest.raises(nd.DeviceError, match="CUDAGraph: nothing to replay: got no recording"):
        graph.replay()
    with graph:
        pass
    graph.replay()
    with pytest.raises(nd.DeviceError, match="CUDAGraph: recorded already: got a second rec"):
        graph.__enter__()


def test_a_wrong_id_in_a_replay(cuda):
    table, ids = nd.ones((3, 2), device=cuda), nd.array([0, 1], dtype="int64", device=cuda)
    with nd.CUDAGraph() as graph:
        rows = nd.gather(table, ids)
    ids[:] = nd.array([2, 3], dtype="int64", device=cuda)
    graph.replay()
    with pytest.raises(IndexError, match="gather: id is out of range: got 3: need 0 <= id < 3"):
        rows.numpy()


@pytest.mark.skipif(nd.cuda().enabled(), reason="this machine has CUDA")
def test_without_cuda_the_error_says_what_is_missing():
    with pytest.raises(nd.DeviceError, match="cuda: the device is not available: missing"):
        nd.CUDAGraph()
