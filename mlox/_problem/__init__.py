"""One problem: a pytree of parameters, optimizer state and loss."""
