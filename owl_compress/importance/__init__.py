"""How much every block and linear matters, measured once."""
