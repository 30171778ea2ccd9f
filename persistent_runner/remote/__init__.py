"""A way onto the machines of a cluster."""
