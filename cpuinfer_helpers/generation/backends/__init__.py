"""The backends of text generation, a file each."""
