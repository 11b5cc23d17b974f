"""What a model is made of: families, blocks, linears, heads and channels; read, not changed."""
