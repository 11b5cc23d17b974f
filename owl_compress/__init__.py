"""owl-compress: measure layer importance once, turn it into budgets, carry them out with any backend."""
