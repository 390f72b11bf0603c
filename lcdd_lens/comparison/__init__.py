"""Carriers against circuits: attribution rankings judged beside a carrier on the same channels."""

from lcdd_lens.comparison.config import CARRIER, METHODS, ComparisonConfig
from lcdd_lens.comparison.material import Material
from lcdd_lens.comparison.result import ComparisonRecord, ComparisonResult
from lcdd_lens.comparison.runs import compare_run, read_run
from lcdd_lens.comparison.seeds import across_seeds, seeds_table, write_seeds_report
from lcdd_lens.comparison.study import compare

__all__ = [
    "CARRIER",
    "METHODS",
    "ComparisonConfig",
    "ComparisonRecord",
    "ComparisonResult",
    "Material",
    "across_seeds",
    "compare",
    "compare_run",
    "read_run",
    "seeds_table",
    "write_seeds_report",
]
