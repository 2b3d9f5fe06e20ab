"""How long a run may take."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class Budget:
    """`seconds` from now. A step under way when it is over is finished, none is begun after.

    `check` is called before each step: it raises where none is to be begun for another reason.
    """

    seconds: float
    check: Callable[[], None] = lambda: None
    clock: Callable[[], float] = time.monotonic
    _start: float = field(init=False)

    def __post_init__(self) -> None:
        self._start = self.clock()

    @property
    def left(self) -> float:
        """Seconds, 0 when it is over."""
        return max(0.0, self.seconds - (self.clock() - self._start))

    @property
    def over(self) -> bool:
        self.check()
        return self.left == 0.0
