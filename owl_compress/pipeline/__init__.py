"""The thin layer that knows allocators and backends by name: single stages, and a recipe's whole line."""
