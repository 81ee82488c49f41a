"""What a hypergradient is: one Lagrangian, one adjoint, at fixed values."""
