"""Backends: the same operations as `tinyprune.ops`, compiled."""
