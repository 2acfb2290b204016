"""What is varied, how answers are compared, and what counts as equal."""
