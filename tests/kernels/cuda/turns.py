"""Numba's simulator, with threads that take turns: each runs alone from one barrier to the next, in a given order.

Numba's own lets all threads of a block run at once, so that whether a missing barrier shows is a matter of chance. Here
a thread that is first has all of what it does before a barrier behind it when the next one starts: what it reads too
early is not there yet, and what it writes too early is gone for the others. With the order turned round, too, nothing
can hide. A barrier that not all threads come to is an error. And they are no threads of the system, which makes it a
hundred times as fast.

Shared memory is full of NaN when a block begins: what is read before it is written shows.
"""

import contextvars
import sys
import threading
from types import SimpleNamespace

import numpy as np
from greenlet import greenlet
from numba import cuda
from numba.cuda.simulator import kernel, kernelapi
from numba.cuda.simulator.kernelapi import Dim3, FakeCUDAShared

ORDERS = {"first to last": lambda threads: threads, "last to first": lambda threads: threads[::-1]}
order = "first to last"
current = None  # the thread that runs
shared = {}  # the block's arrays, by file and line
swapped = {}  # modules whose `cuda` is the simulator's now, by their identity
launch = kernel.FakeCUDAKernel.__call__


class Thread(greenlet):
    """A thread of a block; what runs it goes on when it comes to a barrier."""

    def __init__(self, function, block_index, thread_index):
        super().__init__(function)
        self.gr_context = contextvars.copy_context()  # NumPy keeps there which warnings are wanted
        self.blockIdx, self.threadIdx = Dim3(*block_index), Dim3(*thread_index)
        self.barrier = None  # file and line of the one that it waits at

    def syncthreads(self):
        """Wait."""
        caller = sys._getframe(2)  # 1 is the simulator's own
        self.barrier = caller.f_code.co_filename, caller.f_lineno
        self.parent.switch()


class Block(kernel.BlockManager):
    """The threads of a block."""

    def run(self, grid_point, *arguments):
        """From barrier to barrier, all of them."""
        global current
        shared.clear()
        points = list(np.ndindex(*self._block_dim))
        threads = [Thread(lambda: self._f(*arguments), grid_point, point) for point in ORDERS[order](points)]
        try:
            while threads:
                for current in threads:
                    current.switch()
                waiting = [thread for thread in threads if not thread.dead]
                if waiting and (len(waiting) < len(threads) or len({thread.barrier for thread in waiting}) > 1):
                    raise AssertionError(f"not all threads of the block come to the barrier {waiting[0].barrier}")
                threads = waiting
        finally:
            current = None


def call(self, *arguments):
    """As Numba's, which puts the simulator's `cuda` into a function's module for each call. Here it is for each launch."""
    context = kernel._get_kernel_context()
    if not self._device and context is None:
        try:
            return launch(self, *arguments)
        finally:
            for names in swapped.values():
                names["cuda"] = cuda
            swapped.clear()
    names = self.fn.__globals__
    if id(names) not in swapped and names.get("cuda") is cuda:
        swapped[id(names)] = names
        names["cuda"] = context
    return self.fn(*arguments)


def shared_array(self, shape, dtype):
    """As Numba's, which looks for the calling line in the whole stack and reads its source for that."""
    caller = sys._getframe(1)
    place = caller.f_code.co_filename, caller.f_lineno
    if place not in shared:
        dtype = kernelapi.numpy_support.as_dtype(dtype)
        array = np.empty(shape, dtype)
        array.reshape(-1).view(np.uint8)[:] = 255
        shared[place] = array
    return shared[place]


def install():
    """From now on, in this process."""
    kernel.BlockManager = Block
    kernel.FakeCUDAKernel.__call__ = call
    kernelapi.threading = SimpleNamespace(Lock=threading.Lock, current_thread=lambda: current)
    FakeCUDAShared.array = shared_array
