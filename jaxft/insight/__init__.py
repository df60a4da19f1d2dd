"""What data hold besides what was meant: duplicates, leaks, damage, labels that look wrong."""
