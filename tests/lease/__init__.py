"""Tests of `lease`."""
