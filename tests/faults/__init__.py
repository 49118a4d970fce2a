"""What can go wrong around the project's commands, tried one by one: kills, full disks, signals, two at once, damaged files.

`make faults` tries all of it and prints for each kind what was tried and what survived; tests/test_faults.py tries a sample.
"""
