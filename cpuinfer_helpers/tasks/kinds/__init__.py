"""One file for each kind of task, found by :mod:`~cpuinfer_helpers.tasks.kinds.registry`."""
