"""Matrix products: which kernel computes one, and the kernels. `matmul` is the entry point."""
