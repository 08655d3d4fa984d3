"""Numba's simulator, with threads that take turns: each runs alone from one barrier to the next, in a given order.

Numba's own lets all threads of a block run at once, so that whether a missing barrier shows is a matter of chance. Here
a thread that is first has all of what it does before a barrier behind it when the next one starts: what it reads too
early is not there yet, and what it writes too early is gone for the others. With the order turned round, too, nothing
can hide. A barrier that not all threads come to is an error. And they are no threads of the system, which makes it a
hundred times as fast.

What the 32 threads of a warp do together, each hands its numbers in (`exchange`) and goes on when all of them have. The
other warps take their turns before or after, barrier by barrier.

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
WARP = 32
current = None  # the thread that runs
shared = {}  # the block's arrays, by file and line
swapped = {}  # modules whose `cuda` is the simulator's now, by their identity
launch = kernel.FakeCUDAKernel.__call__


class Thread(greenlet):
    """A thread of a block; what runs it goes on when it comes to a barrier or hands something in."""

    def __init__(self, function, block_index, thread_index):
        super().__init__(function)
        self.gr_context = contextvars.copy_context()  # NumPy keeps there which warnings are wanted
        self.blockIdx, self.threadIdx = Dim3(*block_index), Dim3(*thread_index)
        self.barrier = None  # file and line of the one that it waits at
        self.handed = None  # place in the program, and numbers for the others of its warp
        self.received = None  # those of all of them, in order

    def syncthreads(self):
        caller = sys._getframe(2)  # 1 is the simulator's own
        self.barrier = caller.f_code.co_filename, caller.f_lineno
        self.parent.switch()


def exchange(place, numbers):
    """What each thread of a warp hands in here, in order, once all have."""
    thread = current
    thread.handed = place, numbers
    thread.parent.switch()
    return thread.received


class Block(kernel.BlockManager):
    def run(self, grid_point, *arguments):
        global current
        shared.clear()
        # x changes fastest, as on a GPU: 32 of them in a row are a warp
        points = [point[::-1] for point in np.ndindex(*self._block_dim[::-1])]
        threads = [Thread(lambda: self._f(*arguments), grid_point, point) for point in points]
        warps = [threads[first : first + WARP] for first in range(0, len(threads), WARP)]
        try:
            while threads:
                for warp in ORDERS[order](warps):
                    run_warp(warp)
                waiting = [thread for thread in threads if not thread.dead]
                if waiting and (len(waiting) < len(threads) or len({thread.barrier for thread in waiting}) > 1):
                    raise AssertionError(f"not all threads of the block come to the barrier {waiting[0].barrier}")
                threads = waiting
        finally:
            current = None


def call(self, *arguments):
    """As Numba's, but the simulator's `cuda` is put into a function's module once a launch, and not for each call."""
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


def run_warp(warp):
    """Until each of its threads waits at a barrier, or is done."""
    global current
    running = [thread for thread in warp if not thread.dead]
    while running:
        for current in ORDERS[order](running):
            current.switch()
        running = [thread for thread in warp if thread.handed]
        if running and (len(running) < len(warp) or len({thread.handed[0] for thread in running}) > 1):
            raise AssertionError(f"not all threads of the warp hand in numbers for {running[0].handed[0]}")
        received = [thread.handed[1] for thread in running]
        for thread in running:
            thread.handed, thread.received = None, received


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
    kernel.BlockManager = Block
    kernel.FakeCUDAKernel.__call__ = call
    kernelapi.threading = SimpleNamespace(Lock=threading.Lock, current_thread=lambda: current)
    FakeCUDAShared.array = shared_array
