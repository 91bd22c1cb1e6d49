"""Describe what to measure: axes, cells, records, suites, plans, names of models, data and weights. No torch."""

from sema_bench.spec.sema_package import check_sema_package

check_sema_package()  # everything that imports sema imports this package first
