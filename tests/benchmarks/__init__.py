"""The benchmarks of the trainings."""
