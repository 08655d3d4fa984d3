"""A package, because its files are named like those of tests/ops."""
