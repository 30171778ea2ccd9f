"""Rescale on this machine: the same wire table, real commands, real SSH."""
