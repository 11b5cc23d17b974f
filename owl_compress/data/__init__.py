"""Text, and the windows of tokens that it is cut into."""
