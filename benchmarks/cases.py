"""What the benchmarks on the embedded model share; the rest of it is in protocols/embedded.yaml."""

SEQ_LEN = 512
"""Tokens of a window."""
