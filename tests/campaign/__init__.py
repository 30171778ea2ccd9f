"""Studies whose drivers, clusters and networks fail at every moment; the truth is kept where no driver can touch it."""
