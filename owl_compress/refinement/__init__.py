"""A plan that is there, made better by measured damage: swaps of levels, or evolution, and a gate."""
