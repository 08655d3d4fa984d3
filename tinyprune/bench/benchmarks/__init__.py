"""One benchmark a file: which contenders meet at which shapes. `run(options)` returns the records."""
