"""Many runs: comparisons, searches and studies, and the processes that carry them out."""
