"""Why targets are missed, as far as it is known: by group and side of a comparison."""

BETTY = """\
Products take all of the time. An upper step of DARTS is a gradient for each lower step,
one more, and two forward passes, and mlox takes little more for them than the same
steps by hand. What it gains beside Betty is what a gradient takes in PyTorch beside
JAX, see "A gradient alone", and what Betty's engine takes. Tried there: oneDNN and
YNNPACK for the products, and vectors of 512 bits. Tried, and part of the figures:
batches that are stacked, and on the device, before the step.\
"""
HAND = """\
The compiled kernels are the same but for a few small ones, in which mlox keeps norms
from overflowing; the rest is the call, which takes a problem apart and rebuilds it once
in each dispatch. Tried, and part of the figures: problems that are rebuilt by one
copied dictionary rather than by their constructor, and static attributes that are kept,
and compared, as one object.\
"""
JAXOPT = """\
Both programs make as many products with the Hessian and as many gradients, but for one
product more in jaxopt's conjugate gradients; mlox reports the residual and the gap. Not
explained further.\
"""
SAME = """\
By XLA's count the program has as many operations as that by hand, and no more
temporaries. Not explained further.\
"""
ARRAYS = """\
JAX takes bare arrays apart in C++, and calls functions in Python for a problem of mlox,
as for a TrainState; beside these see "by hand". They count no steps, either.\
"""
CAUSES = {
    ("Meta-Weight-Net", "Betty"): BETTY,
    ("Meta-Weight-Net", "by hand"): HAND,
    ("Penalties of a logistic regression", "by hand"): HAND,
    ("Penalties of a logistic regression", "by hand, arrays"): ARRAYS,
    ("MAML", "by hand"): HAND,
    ("MAML", "by hand, arrays"): ARRAYS,
    ("Implicit MAML", "by hand"): HAND,
    ("Implicit MAML", "by hand, arrays"): ARRAYS,
    ("Beside the step by hand", "by hand"): HAND,
    ("Beside the step by hand", "by hand, arrays"): ARRAYS,
    ("Implicit differentiation", "jaxopt"): JAXOPT,
    ("Long unrolls", "by hand, 2 nested scans"): SAME,
    ("Data attribution", "by hand"): SAME,
}
CACHED = "mlox, from a cache"
MEMORY = f"""\
Most of what mlox holds is a compiled program, and what the compiler keeps when it is
done, which a process does not have that finds the program in JAX's persistent cache
("{CACHED}"). Step memory is larger than another library's where all tasks
are adapted at once, and not one by one (`tasks_at_once=` bounds how many), and beside
Betty on the CNN, where the step by hand takes as much: it is XLA's for convolutions.\
"""
