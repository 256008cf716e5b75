"""Acceleration: which kernel computes a layer, and the fused layers that call it. Knows no framework."""
