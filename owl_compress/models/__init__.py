"""What a model is made of: families, blocks, linears, heads and channels; taken apart and looked at."""
