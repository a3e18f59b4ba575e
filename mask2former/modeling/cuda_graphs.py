"""CUDA graphs of the forward pass: the host launches it as a whole, not a thousand kernels."""

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor

MOST_GRAPHS = 16  # of as many shapes; they share memory, but for input and results
ROUNDS_BEFORE = 3  # for what is made when kernels first run


class CudaGraphs:
    """A function of one tensor on a GPU, recorded for each shape that comes and then replayed.

    The function launches the same kernels for the same shape, whatever the values, and does not
    wait for the device. Of the shapes only the latest ``MOST_GRAPHS`` are kept.
    """

    def __init__(self, function: Callable[[Tensor], dict[str, Tensor]]) -> None:
        self.function = function
        self._graphs: OrderedDict[tuple, _Graph] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle()

    @torch.inference_mode(False)  # what is kept may be written to outside of that mode
    @torch.no_grad()
    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """What the function returns; its tensors are copies."""
        key = (x.shape, x.dtype, x.device)
        graph = self._graphs.pop(key, None)
        if graph is None:
            while len(self._graphs) >= MOST_GRAPHS:
                self._graphs.popitem(last=False)
            graph = _Graph(self.function, x, self._pool)
        self._graphs[key] = graph
        return graph(x)


class _Graph:
    """One recording, with the memory of its input and results."""

    def __init__(
        self, function: Callable[[Tensor], dict[str, Tensor]], x: Tensor, pool: object
    ) -> None:
        self.input = x.clone()
        stream = torch.cuda.Stream(x.device)
        stream.wait_stream(torch.cuda.current_stream(x.device))
        with torch.cuda.stream(stream):  # as torch's documentation of graphs asks for
            for _ in range(ROUNDS_BEFORE):
                function(self.input)
        torch.cuda.current_stream(x.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph, pool=pool):
            self.results = function(self.input)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        self.input.copy_(x)
        self.graph.replay()
        return {name: result.clone() for name, result in self.results.items()}
