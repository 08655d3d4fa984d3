"""Backends: the same operations as `tinyprune.ops`, compiled; `backend` makes the engine that is asked for.

cpu, cuda            the kernels of each engine
formulas, linear     what both share
pool, waiting        memory that is used again; threads that wait
machine, gpu         what there is to compute with
"""
