"""The thin layer that knows allocators and backends by name: single stages, and the whole line for a recipe."""
