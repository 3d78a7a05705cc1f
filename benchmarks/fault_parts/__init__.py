"""What faults.py is made of: a small real pool, a process that forks runs, calls that fail, and the experiments."""
