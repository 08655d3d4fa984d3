"""Pruning: the gates' training, and the removal of closed heads."""
