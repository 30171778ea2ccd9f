"""Tests of the way onto a machine."""
