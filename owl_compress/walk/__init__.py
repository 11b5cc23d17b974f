"""One pass over the blocks of a model, one at a time, and what is gathered on the way."""
