"""Data: iterators over batches with positions, and batches stacked for a cycle."""
