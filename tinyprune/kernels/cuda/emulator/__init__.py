"""An emulator of PTX: compiled kernels run, and every access is checked, on a machine without a GPU."""
