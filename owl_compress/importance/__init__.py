"""How much every block and linear matters: scores in a report, damages in a profile, measured once."""
