"""The operations of `tinyprune.ops`, with kernels for a GPU; `engine` lists them."""
