"""Models whose encoder reads a source before their decoder writes of it."""
