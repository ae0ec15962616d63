"""What is measured of a policy: answers, verdicts, held-out pairs, stability-v1; and the files of benchmarks."""
