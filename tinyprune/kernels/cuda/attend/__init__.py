"""The kernels of attention, forward and backward; `operations.attention` launches them.

`tiles` says how a block works; each kernel is put together from its functions and those of `sums`. In the innermost
loops most instructions are multiply-adds.
"""
