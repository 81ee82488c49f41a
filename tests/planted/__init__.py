"""Programs in which one thing is wrong, or nothing, for what must tell which."""
