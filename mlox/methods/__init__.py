"""Ways of differentiating an answer, one file each."""

from mlox.methods._attach import attach as attach
from mlox.methods._attach import attached as attached
from mlox.methods._base import Answer as Answer
from mlox.methods._base import Method as Method
from mlox.methods._base import reach as reach
from mlox.methods._finite_difference import FiniteDifference as FiniteDifference
from mlox.methods._implicit import Implicit as Implicit
from mlox.methods._sama import SAMA as SAMA
from mlox.methods._unrolled import Detached as Detached
from mlox.methods._unrolled import Iterative as Iterative
from mlox.methods._unrolled import Unrolled as Unrolled
from mlox.methods._unrolled import checkpointed_scan as checkpointed_scan
