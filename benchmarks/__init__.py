"""Measurements, side by side in one run. Imports the project's modules; none of them imports this."""
