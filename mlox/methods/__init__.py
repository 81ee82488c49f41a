"""Ways to differentiate an answer, one file each."""

from mlox.methods._attach import attach as attach
from mlox.methods._attach import attach_answer as attach_answer
from mlox.methods._base import Answer as Answer
from mlox.methods._base import Method as Method
from mlox.methods._base import follows_steps as follows_steps
from mlox.methods._base import reach as reach
from mlox.methods._draws import count_draws as count_draws
from mlox.methods._finite_difference import FiniteDifference as FiniteDifference
from mlox.methods._finite_difference import takes_difference as takes_difference
from mlox.methods._fixed_point import FixedPoint as FixedPoint
from mlox.methods._forward import Forward as Forward
from mlox.methods._gauss_newton import GaussNewton as GaussNewton
from mlox.methods._implicit import Implicit as Implicit
from mlox.methods._implicit import transposed_product as transposed_product
from mlox.methods._loop import Iterative as Iterative
from mlox.methods._loop import Loop as Loop
from mlox.methods._memory import MethodWithMemory as MethodWithMemory
from mlox.methods._memory import call_multiplier as call_multiplier
from mlox.methods._memory import keeps_memory as keeps_memory
from mlox.methods._sama import SAMA as SAMA
from mlox.methods._soba import SOBA as SOBA
from mlox.methods._symmetry import asymmetry as asymmetry
from mlox.methods._unrolled import Detached as Detached
from mlox.methods._unrolled import Unrolled as Unrolled
