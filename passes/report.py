"""What passes decided, site by site: the match report."""

from dataclasses import asdict, dataclass, field
from typing import Literal

from torch_mlir import ir

from moeloom.passes.diagnostics import position

Decision = Literal["fused", "refused"]


@dataclass(frozen=True)
class Record:
    """One candidate site of a rewrite: what was decided and why, at `location` (file:line:col)."""

    function: str
    site: str
    decision: Decision
    reason: str
    location: str

    def message(self) -> str:
        """The record in one line, without its location."""
        return f"{self.decision}: {self.site} of @{self.function}: {self.reason}"

    def remark(self) -> str:
        """The record as MLIR prints a remark: `file:line:col: remark: ...`."""
        return f"{self.location}: remark: {self.message()}"


@dataclass
class Report:
    """The records of one run of a pipeline, in program order of each pass."""

    records: list[Record] = field(default_factory=list)

    def add(self, op: ir.Operation | ir.OpView, site: str, decision: Decision, reason: str) -> None:
        """Record a decision about `op`."""
        self.records.append(Record(function_name(op), site, decision, reason, position(op.location)))

    @property
    def fused(self) -> list[Record]:
        return [record for record in self.records if record.decision == "fused"]

    @property
    def refused(self) -> list[Record]:
        return [record for record in self.records if record.decision == "refused"]

    def as_dicts(self) -> list[dict[str, str]]:
        """Records as plain dictionaries, for JSON."""
        return [asdict(record) for record in self.records]


def function_name(op: ir.Operation | ir.OpView) -> str:
    """The symbol of the function that holds `op`; the module's has none: ""."""
    inside = op
    while inside.parent is not None:
        inside = inside.parent
        if "sym_name" in inside.attributes:
            return inside.attributes["sym_name"].value
    return ""
