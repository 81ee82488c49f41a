"""Devices: how a state is placed on a mesh, and what several processes agree on."""
