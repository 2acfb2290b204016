"""Tasks that need no network: generated data, and small models trained on it from scratch by a seeded script."""
