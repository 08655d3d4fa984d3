"""What touches the GPU: compiling and launching kernels, its memory, arrays in it, loads of four numbers at a time."""
