"""Which plan, and why. Pure: no Ray, no torch, no clock, no I/O."""
