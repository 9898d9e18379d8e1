"""What a policy would have done: recorded traces against simulated replicas, with the real code.

Policies, guard and governor are the product's own; only engines, machine and clients are simulated.
Read `simulator.py` first: its `run` is the whole story.
"""
