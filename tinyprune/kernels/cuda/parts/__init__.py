"""Pieces that several operations share: checks of arguments, copies, sums."""
