"""The kernels of attention, forward and backward; `layers.attention` launches them.

`tiles` says how a block works; each kernel is put together from the functions of `places`, `loads`, `scores`, `mixes`
and, for u and w, `biases`. In the innermost loops at least three of four instructions are multiply-adds.
"""
