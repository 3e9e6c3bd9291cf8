"""What is computed from finished runs: intervals, tests, tables, projections."""
