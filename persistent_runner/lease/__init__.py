"""A hold on a cluster: acquire, check, renew, release."""
