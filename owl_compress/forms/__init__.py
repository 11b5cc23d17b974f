"""How weights live in memory: dense, cut, as integer codes, semi-structured."""
