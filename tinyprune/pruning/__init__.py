"""Pruning: training with gates, importance criteria, and the removal of closed heads."""
