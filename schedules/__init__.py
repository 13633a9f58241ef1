"""The schedule: durations, curves, the compiled plan, backbone stages, optimizer groups."""
