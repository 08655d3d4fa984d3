"""The kernels of attention, forward and backward; `layers.attention` launches them. `tiles` is what they share."""
