"""What a model takes and gives: inputs, outputs, copies, and the reference that it is compared with."""
