"""Tracing, freezing and verifying a model, or falling back."""
