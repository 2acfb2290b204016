"""What the notebooks need and nobody else: guesses, pictures, proofs, whole flows, model families, the C++ program."""
