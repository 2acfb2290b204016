"""This machine and this process: what the CPU can do, what may be used of it, and the switches of the process."""
