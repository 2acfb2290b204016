"""What can be typed: ``python -m cpuinfer_helpers COMMAND``, what each prints and exits with."""
