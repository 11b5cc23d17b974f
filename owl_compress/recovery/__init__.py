"""Recovery: a short training after compression, that leaves what was compressed as it is."""
