"""Pages about runs, made from what a run has written to its folder; needs no jax."""

from spectral_jax.reporting.report import write_report

__all__ = ["write_report"]
