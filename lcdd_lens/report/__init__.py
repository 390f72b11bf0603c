"""Self-contained HTML reports: one page per run, or per set of seeds."""

from lcdd_lens.report.run import run_report, write_run_report

__all__ = ["run_report", "write_run_report"]
