"""The layer that knows allocators and backends by name: a request, its session, and what is done with it."""
