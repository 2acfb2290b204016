"""Question answering on SQuAD's data: reading, windows, answers and scores."""
