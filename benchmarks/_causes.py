"""Why targets are missed, as far as it is known: by group and side of a comparison."""

BETTY = """\
Products take all of the time. One upper step is two gradients of the network and two
forward passes, and mlox takes little more for it than the same steps by hand. So it can
only be as much faster than Betty as a gradient is in JAX than in PyTorch, and by what
Betty's engine takes: see "A gradient alone". Tried there: the other libraries of XLA
for products on a CPU, and wider vectors, none of which is faster. Tried, and part of
the figures: batches that are stacked, and on the device, before the step.\
"""
CALLS = """\
The compiled kernels are the same but for a few small ones, which keep norms from
overflowing and count steps; the rest is the call, which takes a problem apart and
rebuilds it. With more cycles in a dispatch it vanishes. Tried, and part of the figures:
problems that are rebuilt by one copied dictionary rather than by their constructor,
and static attributes that are kept, and compared, as one object.\
"""
CAUSES = {
    ("Meta-Weight-Net", "Betty"): BETTY,
    ("Penalties of a logistic regression", "by hand"): CALLS,
    ("MAML", "by hand"): CALLS,
    ("Implicit MAML", "by hand"): CALLS,
    ("Beside the step by hand", "by hand"): CALLS,
}
MEMORY = """\
Where mlox holds more than another library, its steps do not: step memory, which they
take and give back, and the figures of "by hand" and "JAX alone" tell them apart. What
is left is XLA's: a compiled program, and what the compiler keeps when it is done, which
a process does not have that finds the program in JAX's persistent cache ("mlox, from a
cache").\
"""
