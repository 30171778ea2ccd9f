"""Tests of `rescale`."""
