"""Measuring calls, with intervals, and the most that the CPU could do."""
