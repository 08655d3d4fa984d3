"""Runs: the stages of the method (`run`) and the directory where a run keeps its files (`directory`)."""
