"""What carries a plan out: the contract of a backend, and the driver that walks it over a model."""
