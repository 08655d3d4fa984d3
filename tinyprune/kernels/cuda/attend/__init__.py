"""The kernels of attention, forward and backward; `cuda.attention` launches them.

`tiles` draws how a block of threads works, and `steps` has what it does with a tile; each of the four kernels is put
together from their functions. In the innermost loops most instructions are multiply-adds.
"""
