"""Devices: where arrays live, and the few operations that the loops do there, under the same names on each."""
