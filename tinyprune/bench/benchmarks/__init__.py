"""The benchmarks: which contenders meet at which shapes. `run_NAME(options)` runs one and returns its records."""
