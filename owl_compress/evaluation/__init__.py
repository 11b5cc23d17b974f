"""What a model is worth afterwards: perplexity, and how fast it runs."""
