"""How weights live on disk: loading, saving, and the form that they are stored in."""
