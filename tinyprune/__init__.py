"""tinyprune: attention-head pruning from scratch, every gradient by hand."""
