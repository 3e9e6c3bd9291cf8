"""What is computed of finished runs: intervals, tests, tables, projections."""
