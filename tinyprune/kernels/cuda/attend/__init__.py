"""The kernels of attention, forward and backward; `layers.attention` launches them. `tiles` is what they share.

What the GPU's own code looks like (SASS, by nvdisasm, for compute capability 9.0): the share of multiply-adds (FFMA) in
the innermost loops, none of which has less than 0.75, and in all that a block executes for a tile of keys or queries of
the context that is seen whole, without dropout; in brackets, the instructions of a thread for it. Before, loops were
not unrolled, every row outside was zeroed, every score compared, and queries of width 64 had tiles of 32.

                     width    loops: before   after     tile: before          after
    attend              16             0.72    0.80             0.45 (1706)    0.56 (1368)
                        32             0.76    0.83             0.55 (2789)    0.67 (2294)
                        64             0.78    0.84             0.62 (4960)    0.73 (4243)
    queries_backward    16             0.71    0.81             0.55 (2350)    0.68 (1937)
                        32             0.76    0.82             0.64 (4030)    0.75 (3468)
                        64             0.67    0.84             0.58 (8798)    0.75 (6906)
    keys_backward       16             0.70    0.77             0.55 (2380)    0.65 (2031)
                        32             0.76    0.78             0.63 (4080)    0.71 (3641)
                        64             0.76    0.81             0.65 (7884)    0.75 (6920)
    distances_backward  16             0.71    0.77             0.53 (1980)    0.62 (1726)
                        32             0.75    0.78             0.61 (3410)    0.68 (3083)
                        64             0.75    0.81             0.62 (6631)    0.72 (5746)
"""
