"""Bad inputs: a table for each area."""
