"""Folders with a manifest, and what is written into them."""
