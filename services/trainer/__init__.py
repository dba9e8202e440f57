"""Ray Train for the student: workers of one process group, anywhere on the cluster."""
