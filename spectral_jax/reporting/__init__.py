"""Pages about runs, made from what a run has written to its folder; needs no jax."""

from spectral_jax.reporting.run_page import write_report
from spectral_jax.reporting.study_page import write_study_report

__all__ = ["write_report", "write_study_report"]
