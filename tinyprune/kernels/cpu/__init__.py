"""The operations of `tinyprune.ops`, compiled by Numba for the CPU."""
