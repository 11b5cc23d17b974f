"""What is written to disk and read back: plain numbers and words, without torch."""
