"""Rescale over HTTPS."""
