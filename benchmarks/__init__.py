"""Speed measured against the plain torch or numpy way of doing the same, on this machine."""
