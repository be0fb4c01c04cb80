"""What pytest must not look for doctests in: modules that other processes import by their own names."""

collect_ignore = ["compute_target.py", "distributed_arguments.py", "distributed_faults.py"]
